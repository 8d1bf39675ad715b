"""The unit for systemd: what systemd says of it, and that it fits the server and its page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convserve_server import settings
from tests.support.pages import blocks, text
from tests.support.repository import ROOT

UNIT = (ROOT / "server/systemd/convserve.service").read_text()
LINES = re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE)
VARIABLES = {settings.variable(name) for name in settings.Settings.model_fields} | {"CONVSERVE_TARGET"}


def test_systemd_finds_nothing(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "convserve.service"
    unit.write_text(UNIT.replace("/opt/convserve/bin/convserve", str(Path(sys.executable).with_name("convserve"))))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    said = "".join(line for line in done.stderr.splitlines() if "convserve" in line)
    assert (done.returncode, said) == (0, "")


def test_it_sets_what_the_server_reads() -> None:
    names = re.findall(r"^Environment=(\w+)=", UNIT, re.MULTILINE)
    named = re.findall(r"(CONVSERVE_\w+)=", "".join(blocks(text("docs/systemd.md"), "ini")))
    assert names
    assert {*names, *named} <= VARIABLES


def test_stopping_has_time_for_the_calls_in_flight() -> None:
    assert int(dict(LINES)["TimeoutStopSec"]) > settings.Settings.model_fields["drain_s"].default


def test_the_page_names_what_is_there() -> None:
    (installed, *_) = blocks(text("docs/systemd.md"), "sh")
    (copied,) = re.findall(r"^cp (\S+) ", installed, re.MULTILINE)
    assert (ROOT / copied).read_text() == UNIT
    (folder,) = re.findall(r"-m venv (\S+)", installed)
    assert f"ExecStart={folder}/bin/convserve serve" in UNIT
    (read,) = re.findall(r"^EnvironmentFile=-(\S+)", UNIT, re.MULTILINE)
    assert f"`{read}`" in text("docs/systemd.md")
