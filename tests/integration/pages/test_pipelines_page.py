"""Every program of docs/pipelines.md runs, with the libraries that it is about, and prints what its comments say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import blocks, text
from tests.support.servers.server_process import RunningServer

PROGRAMS = blocks(text("docs/pipelines.md"), "python")
OPTIONAL = ("torch",)  # too large to be among what every checkout installs


def about(program: str) -> str:
    """Returns the library that a program is about."""
    found = re.findall(r"^import (\w+)", program, re.MULTILINE)
    return next((each for each in found if each not in ("numpy", "convserve")), "convserve")


def test_there_is_a_program_for_each_library() -> None:
    assert [about(each) for each in PROGRAMS] == ["convserve", "tensorflow", "torch", "multiprocessing"]


@pytest.mark.parametrize("program", PROGRAMS, ids=about)
def test_program_runs_and_prints_what_its_comments_say(program: str, server: RunningServer, tmp_path: Path) -> None:
    library = about(program)
    if library in OPTIONAL and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    file = tmp_path / "program.py"  # which processes that are not forked read again
    file.write_text(program.replace("localhost:50051", server.target))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for expected in re.findall(r"print.*\)  # (.*)", program):
        assert expected in done.stdout
