"""The images' recipe: hadolint's word on it, and that it fits the server and the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import convserve
from convserve_server import settings
from tests.support.repository import ROOT

DOCKERFILE = ROOT / "server/Dockerfile"
_TEXT = "".join(
    line for line in DOCKERFILE.read_text().splitlines(keepends=True) if not re.match(r"\s*#", line)
).replace("\\\n", " ")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in _TEXT.splitlines() if line.strip()]


LABELS = {
    stage.split()[-1]: dict(re.findall(r'(org\.opencontainers\.image\.[\w.]+)="([^"]*)"', body))
    for stage, body in re.findall(r"^FROM ([^\n]*)\n(.*?)(?=^FROM |\Z)", _TEXT, re.MULTILINE | re.DOTALL)
}
"""The labels that each stage sets."""


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


@pytest.mark.parametrize("image", ["client", "server"])
def test_an_image_has_the_labels_of_the_open_container_initiative(image: str) -> None:
    labels = {**LABELS["runtime"], **LABELS[image]}
    names = "title description licenses source url documentation base.name version revision created"
    assert labels.keys() == {f"org.opencontainers.image.{name}" for name in names.split()}
    assert labels["org.opencontainers.image.title"] == f"convserve {image}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert f"{labels['org.opencontainers.image.source']}.git" in (ROOT / "README.md").read_text()
    page = labels["org.opencontainers.image.documentation"].partition("/blob/v${VERSION}/")[2]
    assert (ROOT / page).exists()


def test_every_variable_of_a_label_is_declared_in_its_stage() -> None:
    """A build argument from before the first stage has no value in one that does not name it again."""
    runtime = _TEXT.partition(" AS runtime\n")[2].partition("\nFROM ")[0]
    declared = set(re.findall(r"^ARG (\w+)", runtime, re.MULTILINE))
    used = {name for labels in LABELS.values() for value in labels.values() for name in re.findall(r"\{(\w+)\}", value)}
    assert used == {"VERSION", "REVISION", "CREATED", "PYTHON_IMAGE"}
    assert used <= declared


def test_both_images_carry_what_they_consist_of() -> None:
    for image in ("client", "server"):
        assert f"--from={image}-inventory /inventory /usr/share/doc/convserve" in said("COPY")
    written = {path for each in said("RUN") for path in re.findall(r"/inventory/(\S+)", each)}
    assert written == {"sbom.cdx.json", "licences.md", "debian-packages.txt"}
    page = (ROOT / "docs/containers.md").read_text()
    assert all(f"`{path}`" in page for path in written)


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
