"""What callers can take together fits the memory that the compose file and the manifests give a server."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from convserve_server import settings
from convserve_server.memory import budget
from tests.support.repository import ROOT

GIB = 2**30
_NAMES = {settings.variable(name): name for name in settings.Settings.model_fields}


def _compose(name: str) -> tuple[dict[str, str], int]:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    memory = service["deploy"]["resources"]["limits"]["memory"].rpartition(":-")[2].removesuffix("g}")
    return {key: str(value) for key, value in service["environment"].items() if "$" not in str(value)}, int(memory)


def _kubernetes() -> tuple[dict[str, str], int]:
    (container,) = _pod()["containers"]
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    return environment, int(container["resources"]["limits"]["memory"].removesuffix("Gi"))


def _pod() -> dict[str, Any]:
    manifest = yaml.safe_load((ROOT / "server/kubernetes/deployment.yaml").read_text())
    return manifest["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("environment", "gib"), [_compose("server"), _compose("server-gpu"), _kubernetes()], ids=["cpu", "gpu", "pod"]
)
def test_all_that_callers_can_take_fits_the_container(
    environment: dict[str, str], gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "container_memory_bytes", lambda: gib * GIB)
    monkeypatch.setattr(budget, "machine_memory_bytes", lambda: gib * GIB)
    given = settings.read({_NAMES[key]: value for key, value in environment.items()})
    text, fits = budget.described(budget.fitted(given))
    assert fits, text


def test_the_layers_of_a_pod_fit_their_volume_and_the_pods_disk() -> None:
    pod = _pod()
    (volume,) = (each for each in pod["volumes"] if each["name"] == "layers")
    environment, _ = _kubernetes()
    given = settings.read({"store_bytes": environment["CONVSERVE_STORE_BYTES"]}).store_bytes
    limit = pod["containers"][0]["resources"]["limits"]["ephemeral-storage"]
    assert given < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * GIB
    assert given < int(limit.removesuffix("Gi")) * GIB
