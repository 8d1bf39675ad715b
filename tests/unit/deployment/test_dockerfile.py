"""The images' recipe: hadolint's word on it, and that it fits the server and the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import convserve
from convserve_server import settings
from tests.support.repository import ROOT

DOCKERFILE = ROOT / "server/Dockerfile"
_TEXT = "".join(
    line for line in DOCKERFILE.read_text().splitlines(keepends=True) if not re.match(r"\s*#", line)
).replace("\\\n", " ")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in _TEXT.splitlines() if line.strip()]


def said(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_environment_sets_what_the_server_reads() -> None:
    rows = {settings.variable(name) for name in settings.Settings.model_fields} | {"CONVSERVE_TARGET"}
    names = set(re.findall(r"(CONVSERVE_\w+)=", " ".join(said("ENV"))))
    assert names
    assert names <= rows


def test_the_version_is_this_one() -> None:
    assert f"VERSION={convserve.__version__}" in said("ARG")


def test_no_image_runs_as_root() -> None:
    assert set(said("USER")) == {"10001:10001"}


def test_what_is_sent_to_the_builder_is_what_the_recipe_copies() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for rest in said("COPY") if "--from" not in rest for word in rest.split()[:-1]}
    assert sent == copied
    assert all((ROOT / path).exists() for path in copied)


def test_the_trial_of_the_images_says_that_there_is_no_engine(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.containers"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"skipped: no engine runs, and to start one docker and dockerd is missing", done.stdout)
