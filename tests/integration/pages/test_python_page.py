"""docs/python.md and docs/errors.md: their programs and commands run, and print what they say."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convserve import cli
from tests.support.pages import blocks, languages, printed, text
from tests.support.servers.server_process import RunningServer, running_server

PAGES = {name: text(f"docs/{name}.md") for name in ("python", "errors")}
PROGRAMS = {f"{name}-{index}": code for name in PAGES for index, code in enumerate(blocks(PAGES[name], "python"))}


@pytest.fixture(scope="module")
def page_server() -> Iterator[RunningServer]:
    """A server of its own, as the pages list names, with shared memory."""
    with running_server("--shared-memory") as running:
        yield running


def test_all_blocks_are_run() -> None:
    assert languages(PAGES["python"]) == {"python", "sh"}
    assert languages(PAGES["errors"]) == {"python"}
    assert len(PROGRAMS) > 5


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_and_prints_what_its_comments_say(name: str, page_server: RunningServer, tmp_path: Path) -> None:
    code = PROGRAMS[name].replace("localhost:50051", page_server.target)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for line in printed(PROGRAMS[name]):
        assert line in done.stdout


def test_the_commands_run_one_after_the_other(
    page_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSERVE_TARGET", page_server.target)
    for line in "".join(blocks(PAGES["python"], "sh")).splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "convserve"
        assert cli.main(words) == 0, (line, capsys.readouterr().err)
    assert list((tmp_path / "saved").iterdir())
