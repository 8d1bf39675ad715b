"""The project says one version, everywhere: client/convserve/_version.py's. `make version` writes the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import convserve
from tests.support.pages import text
from tests.support.repository import ROOT

VERSION = convserve.__version__
IMAGE = re.compile(r"(?:convserve/(?:server|server-gpu|client):|newTag: )(\d[\w.]*\w)")
RELEASED = ROOT / f"proto/releases/v{VERSION}.txtpb"
FILES = [
    path
    for part in ("server", "docs", "docker-compose.yml", "README.md", "Makefile", "tests/containers", "examples")
    for path in ([ROOT / part] if (ROOT / part).is_file() else (ROOT / part).rglob("*"))
    if path.suffix in (".md", ".yaml", ".yml", ".py", ".txt") or path.name in ("Dockerfile", "Makefile")
]


def test_images_have_this_version() -> None:
    found = {(path.name, said) for path in FILES for said in IMAGE.findall(path.read_text(encoding="utf-8"))}
    assert {said for _, said in found} == {VERSION}
    assert {"Dockerfile", "docker-compose.yml", "deployment.yaml", "kustomization.yaml", "containers.md"} <= {
        name for name, _ in found
    }


def test_the_changelog_says_what_this_version_brings() -> None:
    changelog = text("CHANGELOG.md")
    versions = re.findall(r"^## \[([^]]+)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    assert [version for version, _ in versions][:2] in (["Unreleased", VERSION], [VERSION, versions[1][0]])
    assert all(date for version, date in versions if version != "Unreleased")
    linked = dict(re.findall(r"^\[([^]]+)\]: (\S+)$", changelog, re.MULTILINE))
    assert linked.keys() == {version for version, _ in versions}


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("buf")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_the_contract_keeps_the_callers_of_the_last_release() -> None:
    """As `make breaking` compares them."""
    assert RELEASED.stat().st_size < 200_000
    done = buf("breaking", ROOT / "proto", "--against", RELEASED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", sorted((ROOT / "proto/releases").iterdir()), ids=lambda path: path.stem)
def test_a_broken_promise_to_a_release_is_seen(path: Path, tmp_path: Path) -> None:
    """The contract's image without a field is what a contract is that has lost it."""
    image = path.read_text()
    assert 'name: "data_format"' in image
    changed = tmp_path / "changed.txtpb"
    changed.write_text(image.replace('name: "data_format"', 'name: "another_name"'))
    done = buf("breaking", changed, "--against", path)
    assert done.returncode != 0
    assert "data_format" in done.stdout
