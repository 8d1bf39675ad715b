"""What docs/play.md says: its program runs, and its commands exist."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from convserve import cli
from tests.support.pages import blocks, text
from tests.support.repository import ROOT

PAGE = text("docs/play.md")
(PROGRAM,) = blocks(PAGE, "python")
COMMANDS = [line.partition("#")[0].strip() for line in "".join(blocks(PAGE, "sh")).splitlines()]


def test_its_program_prints_what_it_says(server):
    code = PROGRAM.replace("localhost:50051", server.target)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(1, 2, 2, 2) [[")
    assert "keras.layers.Conv2D(filters=2, kernel_size=3, strides=2)" in done.stdout
    assert "Expected strides of 1 together with dilation_rate > 1" in done.stdout.splitlines()[-1]


def test_the_page_is_written_to_be_changed(tmp_path, monkeypatch, capsys):
    (command,) = (each for each in COMMANDS if "--write" in each)
    words = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0
    assert "marimo edit my_page.py" in capsys.readouterr().out
    assert (tmp_path / "my_page.py").read_text() == (ROOT / "client/convserve/play/app.py").read_text()
    assert cli.main(words) == 1
    assert "--write: Expected a new file. Received my_page.py: File exists." in capsys.readouterr().err


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("pip install")])
def test_extras_exist(command):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"\[(.*)\]", command)[1].split(",")) <= extras.keys()


def test_a_page_that_is_not_there_is_refused(tmp_path, capsys):
    assert cli.main(["play", "--page", str(tmp_path / "none.py")]) == 1
    assert "--page: Expected a file with a page." in capsys.readouterr().err
