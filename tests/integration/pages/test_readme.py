"""The README: its first call, and its quick start as a newcomer types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.pages import blocks, languages, links, printed, section, text
from tests.support.processes import ended_afterwards
from tests.support.servers.server_process import RunningServer

README = text("README.md")
QUICK_START = "".join(blocks(section(README, "Quick start"), "sh"))


def test_it_has_only_blocks_that_are_run_and_is_short() -> None:
    assert languages(README) == {"python", "sh"}
    assert README.count("\n") <= 180


def test_the_first_call_is_short_and_prints_what_its_comments_say(server: RunningServer) -> None:
    (program,) = blocks(README, "python")
    assert len([line for line in program.splitlines() if line.strip() and not line.strip().startswith("#")]) <= 12
    code = program.replace("localhost:50051", server.target)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == printed(program)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of the quick start, its lines typed one after the other in an empty folder.

    The environment has the addresses, which the lines leave at their defaults: a socket, as other tests run beside.
    """
    folder = tmp_path_factory.mktemp("quick")
    address = f"unix://{tmp_path_factory.mktemp('socket')}/s"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CONVSERVE_LISTEN": address,
        "CONVSERVE_TARGET": address,
    }
    command = ["bash", "-e", "-c", f"{QUICK_START}\nwait %1"]
    with ended_afterwards(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as shell:
        out, _ = shell.communicate(timeout=480)  # some twenty seconds, where nothing else runs
        assert shell.returncode == 0, out + (folder / "server.log").read_text()
    return folder, out


def test_the_quick_start_works_line_by_line_in_one_folder(typed: tuple[Path, str]) -> None:
    folder, out = typed
    assert "SERVING" in out
    for written in re.findall(r"[\w-]+\.(?:png|npy)", QUICK_START):
        assert (folder / written).stat().st_size > 0
    assert (folder / "blurred" / "photo.jpg").read_bytes().startswith(b"\xff\xd8")  # which is a JPEG


def test_the_quick_start_stops_its_server(typed: tuple[Path, str]) -> None:
    """`wait` has its status, 0, and the log ends with what a stopping server says."""
    log = (typed[0] / "server.log").read_text()
    assert log.index("ready") < log.index("stopping")


def test_where_a_gpu_pays_is_what_the_page_on_performance_says() -> None:
    (said,) = re.findall(r"from about ([\d.]+) GFLOP for each MB on, at 25 Gbit/s", README)
    (measured,) = re.findall(r"^\| 25 Gbit/s \| ([\d.]+) \|", text("docs/performance.md"), re.MULTILINE)
    assert float(said) == round(float(measured), 2)


def test_no_link_is_relative_on_pypi() -> None:
    """What the build makes of them; `make release-check` looks at a wheel's own."""
    hook = tomllib.loads(text("pyproject.toml"))["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    published = README
    for each in hook["substitutions"]:
        published = re.sub(each["pattern"], each["replacement"], published)
    assert links(README)
    assert links(published) == []
    assert "](https://raw.githubusercontent.com/convserve/convserve/v$HFPR_VERSION/docs/demo.svg)" in published


def test_pip_commands_name_what_there_is() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    commands = re.findall(r"^pip .*?(?=\s*(?:#|$))", README, re.MULTILINE)
    assert commands
    for command in commands:
        named = re.fullmatch(r"pip install '?\.(?:\[([\w,-]+)\])?'?", command)  # test_base_install.py runs it
        assert named, command
        assert set((named[1] or "plot").split(",")) <= extras.keys()


def test_the_clone_line_is_of_the_projects_repository() -> None:
    (cloned,) = re.findall(r"^git clone (\S+)\.git$", README, re.MULTILINE)
    assert f"]({cloned}/blob/" in text("pyproject.toml")
