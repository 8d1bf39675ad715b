"""Every program of docs/models.md runs, and prints what its comments say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer

PAGE = (ROOT / "docs/models.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_has_programs() -> None:
    assert len(PROGRAMS) >= 2


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_program_runs_and_prints_what_its_comments_say(index: int, server: RunningServer, tmp_path: Path) -> None:
    program = PROGRAMS[index].replace("localhost:50051", server.target)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"print\(.*\)  # (.*)", program)
    assert len(expected) == len(re.findall(r"^ *print\(", program, re.MULTILINE))
    for line in expected:
        assert line.removesuffix(" ...") in done.stdout
