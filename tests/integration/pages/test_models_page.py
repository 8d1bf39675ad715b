"""Every program of docs/models.md runs, and prints what its comments say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.pages import blocks, printed, text
from tests.support.servers.server_process import RunningServer

PROGRAMS = blocks(text("docs/models.md"), "python")


def test_the_programs_run_and_print_what_their_comments_say(server: RunningServer, tmp_path: Path) -> None:
    """In one process, which has to import TensorFlow once."""
    assert len(PROGRAMS) >= 2
    file = tmp_path / "programs.py"
    file.write_text(
        "".join(f"print('PROGRAM')\n{program}" for program in PROGRAMS).replace("localhost:50051", server.target)
    )
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for program, out in zip(PROGRAMS, done.stdout.split("PROGRAM\n")[1:], strict=True):
        expected = printed(program)
        assert len(expected) == len(re.findall(r"^ *print\(", program, re.MULTILINE))
        for line in expected:
            assert line in out
