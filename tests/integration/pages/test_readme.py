"""Every block of the README runs, and its tables say what the code says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from convserve import cli, errors
from convserve_server import settings
from tests.support.repository import ROOT
from tests.support.servers.server_process import RunningServer, running_server

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.partition("#")[0].strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()
]


@pytest.fixture(scope="module")
def readme_server() -> Iterator[RunningServer]:
    """The server that the README starts, on a free port."""
    (command,) = (each for each in COMMANDS if each.startswith("convserve serve"))
    arguments = shlex.split(command)[2:]
    assert arguments[0] == "--listen"
    with running_server("--listen", "127.0.0.1:0", *arguments[2:]) as running:
        for put in (each for each in COMMANDS if each.startswith("convserve layers put")):  # which other commands name
            words = [*shlex.split(put)[1:], "--target", running.target]
            assert cli.main(words) == 0
        yield running


def test_readme_has_blocks_and_only_kinds_that_are_run() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_python_block_runs_and_prints_what_its_comments_say(
    index: int, readme_server: RunningServer, tmp_path: Path
) -> None:
    code = PYTHON[index].replace("localhost:50051", readme_server.target)
    # Keras itself warns; our own code may not.
    strict = [] if "import keras" in code else ["-W", "error"]
    answer = subprocess.run(
        [sys.executable, *strict, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    for expected in re.findall(r"print\(.*\)  # (.*)", code):
        assert expected.removesuffix(" ...") in answer.stdout


def test_first_block_is_short() -> None:
    lines = [line for line in PYTHON[0].splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 12


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.startswith("convserve ") and "serve " not in each[9:]]
)
def test_command_runs(
    command: str, readme_server: RunningServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from matplotlib import cbook

    shutil.copy(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSERVE_TARGET", readme_server.target)
    words = shlex.split(command)[1:]
    if words[0] == "bench":
        words += ["--seconds", "0.1"]
    if words[0] in ("info", "health"):  # two as users run them
        answer = subprocess.run(
            [sys.executable, "-m", "convserve", *words], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip()
    else:
        status, captured = cli.main(words), capsys.readouterr()
        assert status == 0, captured.err
        assert captured.out.strip()
    if command.startswith("convserve batch"):
        assert (tmp_path / "blurred" / "photo.npy").stat().st_size > 0
    for written in re.findall(r"[\w-]+\.(?:png|npy)", command):
        assert (tmp_path / written).stat().st_size > 0


def test_pip_commands_name_what_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [each for each in COMMANDS if each.startswith("pip ")]
    assert commands
    for command in commands:
        install, folder, extra = re.fullmatch(r"pip (install) '?(\.)(?:\[([\w-]+)\])?'?", command).groups()  # type: ignore[union-attr]
        assert (install, folder) == ("install", ".")  # test_base_install.py runs it
        assert extra is None or extra in extras


def test_make_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in {
        first or second for first, second in set(re.findall(r"`make (\w+)|^make (\w+)", README, re.MULTILINE))
    }:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_other_commands_are_none() -> None:
    assert all(each.startswith(("convserve ", "pip ", "make ")) for each in COMMANDS if each)


def test_settings_table_is_the_servers() -> None:
    for name in settings.Settings.model_fields:
        flag = "none" if settings.is_secret(name) else f"`{settings.flag(name)}`"
        default = settings.default_text(name)
        assert f"| {flag} | `{settings.variable(name)}` | {default} | {settings.help_text(name)} |" in README


def test_errors_table_names_every_class() -> None:
    for name, member in vars(errors).items():
        if (
            isinstance(member, type)
            and issubclass(member, errors.ConvserveError)
            and member is not errors.ConvserveError
        ):
            assert f"`{name}`" in README, name


def test_pictures_and_links_exist() -> None:
    for path, heading in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", README):
        assert (ROOT / path).exists(), path
        if heading:
            headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
