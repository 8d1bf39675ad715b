"""The images' recipe: what must hold of it, beside what hadolint finds, which the last test runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns each stage's instructions, those of the stage that it is made from first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for what, rest in INSTRUCTIONS:
        if what == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        if name:
            found[name].append((what, rest))
    return found


STAGES = stages()
IMAGES = ("client", "server")


def last(stage: str, what: str) -> str:
    """Returns what the last instruction of a kind says in a stage."""
    return [rest for each, rest in STAGES[stage] if each == what][-1]


def environment(stage: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for what, rest in STAGES[stage] if what == "ENV")))


def test_the_server_is_what_is_built_where_nothing_is_said() -> None:
    assert list(STAGES)[-1] == "server"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_special(image: str) -> None:
    assert last(image, "USER") == "10001:10001"
    users = [index for index, (what, _) in enumerate(STAGES[image]) if what == "USER"]
    assert not [rest for what, rest in STAGES[image][users[0] :] if what == "RUN"], "these would not run as root"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_stopped_by_the_signal_that_the_server_drains_at(image: str) -> None:
    assert last(image, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_its_labels(image: str) -> None:
    labels = " ".join(rest for what, rest in STAGES[image] if what == "LABEL")
    names = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", labels))
    assert names == {"licenses", "version", "revision", "title", "description"}
    assert ("ARG", f"VERSION={convserve.__version__}") in STAGES[image]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_pip_and_no_compiler(image: str) -> None:
    stage = last(image, "FROM").partition(" ")[0]
    assert stage in ("runtime", "${PYTHON_IMAGE}")
    copied = {rest for what, rest in STAGES[image] if what == "COPY"}
    assert copied == {
        f"--from={image}-dependencies /opt/convserve /opt/convserve",
        "--from=package /opt/package /opt/convserve",
    }
    assert "venv --without-pip /opt/convserve" in " ".join(rest for _, rest in STAGES[f"{image}-dependencies"])


def test_every_package_has_the_version_that_is_tested() -> None:
    installs = {
        command.strip()
        for what, rest in INSTRUCTIONS
        if what == "RUN"
        for command in rest.split("&&")
        if "install" in command and "/pip " in command and "uninstall" not in command
    }
    assert len(installs) == 3
    assert all(" -c constraints.txt " in each or " --no-deps " in each for each in installs)


def test_the_health_check_is_the_client_and_asks_where_the_server_listens_without_tls() -> None:
    options, _, command = last("server", "HEALTHCHECK").partition("CMD ")
    assert json.loads(command)[:2] == ["convserve", "health"]
    found = environment("server")
    assert found["CONVSERVE_TARGET"].startswith("unix:")
    assert found["CONVSERVE_TARGET"] in found["CONVSERVE_LISTEN"].split(",")
    assert float(re.search(r"--timeout=(\d+)s", options)[1]) > float(json.loads(command)[-1])  # type: ignore[index]


def test_what_is_written_lies_in_volumes() -> None:
    found, volumes = environment("server"), json.loads(last("server", "VOLUME"))
    assert {found["CONVSERVE_STORE"], found["TMPDIR"]} == set(volumes)
    assert found["CONVSERVE_TARGET"].removeprefix("unix://").rpartition("/")[0] in volumes
    made = next(rest for what, rest in STAGES["runtime"] if what == "RUN")
    assert all(each in made for each in volumes), "a volume has the owner that its folder has in the image"


def test_the_environment_sets_what_the_server_reads() -> None:
    rows = {settings.variable(name) for name in settings.Settings.model_fields} | {"CONVSERVE_TARGET"}
    assert {name for name in environment("server") if name.startswith("CONVSERVE_")} <= rows


def test_ports_are_those_that_are_listened_on() -> None:
    found = environment("server")
    ports = {int(each.rpartition(":")[2]) for each in found["CONVSERVE_LISTEN"].split(",") if "unix:" not in each}
    assert set(map(int, last("server", "EXPOSE").split())) == ports | {
        int(found["CONVSERVE_METRICS"].partition(":")[2])
    }


def test_nothing_is_built_on_something_that_changes() -> None:
    bases = [rest.partition(" ")[0] for what, rest in INSTRUCTIONS if what == "FROM"]
    images = [rest.partition("=")[2] for what, rest in INSTRUCTIONS if what == "ARG" and "PYTHON_IMAGE=" in rest]
    assert {each for each in bases if each not in STAGES} == {"${PYTHON_IMAGE}"}
    assert all(re.fullmatch(r"[\w/.-]+:\d+\.\d+[\w.-]*", each) for each in images)


def test_what_is_sent_to_the_builder_is_what_the_recipe_copies() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word for what, rest in INSTRUCTIONS if what == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    assert kept == copied
    assert all((ROOT / each).exists() for each in copied)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_trial_of_the_images_says_that_there_is_no_engine(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.containers"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"skipped: no engine runs, and to start one docker and dockerd is missing", done.stdout)
