"""What `kubectl kustomize` makes of our manifests, of what it can do as much as they use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.repository import ROOT

FOLDER = ROOT / "server/kubernetes"
OVERLAYS = ("cpu", "gpu", "object-storage")
_KNOWN = {"apiVersion", "kind", "resources", "patches", "images"}


def built(folder: Path) -> list[dict[str, Any]]:
    """Returns the manifests of a folder with a kustomization, and of those that it names, patched."""
    given = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert given.keys() <= _KNOWN, "this knows no more of kustomize"
    manifests = [manifest for path in given["resources"] for manifest in _resource(folder / path)]
    for patch in given.get("patches", ()):
        assert patch.keys() == {"path"}
        change = yaml.safe_load((folder / patch["path"]).read_text())
        (place,) = (number for number, each in enumerate(manifests) if _key(each) == _key(change))
        manifests[place] = merged(manifests[place], change)
    for image in given.get("images", ()):
        for manifest in manifests:
            _tag(manifest, image["name"], image["newTag"])
    return manifests


def only(manifests: list[dict[str, Any]], kind: str) -> Any:
    """Returns the one manifest of a kind."""
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


def container_of(deployment: Any) -> Any:
    """Returns a Deployment's container."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def environment_of(deployment: Any) -> dict[str, str]:
    """Returns the variables of a Deployment's container that have a value there."""
    return {each["name"]: each["value"] for each in container_of(deployment)["env"] if "value" in each}


def merged(value: Any, change: Any) -> Any:
    """Returns a value with a strategic merge patch: lists go by the names of what is in them."""
    if isinstance(value, dict) and isinstance(change, dict):
        found = value | {key: merged(value.get(key), each) for key, each in change.items()}
        return {key: each for key, each in found.items() if each is not None}
    if isinstance(value, list) and isinstance(change, list):
        key = "mountPath" if "mountPath" in change[0] else "name"
        changes = {each[key]: each for each in change}
        kept = [merged(each, changes.pop(each[key], {})) for each in value]
        return kept + list(changes.values())
    return change


def _resource(path: Path) -> list[dict[str, Any]]:
    return built(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _key(manifest: dict[str, Any]) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _tag(manifest: dict[str, Any], name: str, tag: str) -> None:
    if manifest["kind"] == "Deployment":
        container = container_of(manifest)
        if container["image"].partition(":")[0] == name:
            container["image"] = f"{name}:{tag}"
