"""Every command of docs/batch.md runs, in one folder and in the page's order."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from convserve import cli
from tests.support.pages import blocks, text
from tests.support.servers.server_process import RunningServer

COMMANDS = "".join(blocks(text("docs/batch.md"), "sh")).splitlines()


def test_the_commands_run(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib import cbook

    (tmp_path / "photos").mkdir()
    shutil.copy(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False), tmp_path / "photos" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSERVE_TARGET", server.target)
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        if "--dry-run" in command:  # which the page gives after the run itself
            shutil.rmtree("blurred")
        assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
        if command == COMMANDS[2]:
            assert Path("blurred/1.jpg").stat().st_size > 0
    assert Path("edges/1.npy").stat().st_size > 0
    assert not Path("blurred").exists()
