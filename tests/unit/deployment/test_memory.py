"""What callers can take together fits the memory that the compose file and the manifests give a server."""

from __future__ import annotations

import pytest
import yaml

from convserve_server import settings
from convserve_server.memory import budget
from tests.support.kubernetes import FOLDER, OVERLAYS, built, container_of, environment_of, only
from tests.support.repository import ROOT

GIB = 2**30
_NAMES = {settings.variable(name): name for name in settings.Settings.model_fields}


def _compose(name: str) -> tuple[dict[str, str], int]:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    memory = service["deploy"]["resources"]["limits"]["memory"].rpartition(":-")[2].removesuffix("g}")
    return {key: str(value) for key, value in service["environment"].items() if "$" not in str(value)}, int(memory)


def _kubernetes(overlay: str) -> tuple[dict[str, str], int]:
    deployment = only(built(FOLDER / "overlays" / overlay), "Deployment")
    memory = container_of(deployment)["resources"]["limits"]["memory"]
    return environment_of(deployment), int(memory.removesuffix("Gi"))


_CASES = {f"compose {name}": _compose(name) for name in ("server", "server-gpu")}
_CASES |= {f"kubernetes {name}": _kubernetes(name) for name in OVERLAYS}


@pytest.mark.parametrize(("environment", "gib"), _CASES.values(), ids=_CASES)
def test_all_that_callers_can_take_fits_the_container(
    environment: dict[str, str], gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "container_memory_bytes", lambda: gib * GIB)
    monkeypatch.setattr(budget, "machine_memory_bytes", lambda: gib * GIB)
    given = settings.read({_NAMES[key]: value for key, value in environment.items()})
    text, fits = budget.described(budget.fitted(given))
    assert fits, text


def test_the_page_says_how_large_a_message_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / "docs/limits.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| the container | "))
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines[start : start + 4]]
    for size, *expected in zip(rows[0], rows[2], rows[3], strict=True):
        memory = int(size.removesuffix(" GiB")) * GIB
        monkeypatch.setattr(budget, "container_memory_bytes", lambda memory=memory: memory)
        monkeypatch.setattr(budget, "machine_memory_bytes", lambda memory=memory: memory)
        found = [budget.fitted(settings.read({"shared_memory": each})).max_message_bytes for each in ("false", "true")]
        assert [str(each // 2**20) for each in found] == expected, size


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_layers_of_a_pod_fit_their_volume_and_the_pods_disk(overlay: str) -> None:
    deployment = only(built(FOLDER / "overlays" / overlay), "Deployment")
    (volume,) = (each for each in deployment["spec"]["template"]["spec"]["volumes"] if each["name"] == "layers")
    name = "store_cache_bytes" if overlay == "object-storage" else "store_bytes"
    given = settings.read({name: environment_of(deployment)[settings.variable(name)]})
    limit = container_of(deployment)["resources"]["limits"]["ephemeral-storage"]
    for most in (volume["emptyDir"]["sizeLimit"], limit):
        assert getattr(given, name) < int(most.removesuffix("Gi")) * GIB
