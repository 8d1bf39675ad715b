"""The manifests: what Kubernetes' own schemas say of them, and that they fit the server."""

from __future__ import annotations

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from convserve_server import settings
from convserve_server.observability.metrics import Holdings
from tests.support.repository import ROOT

PAGE = (ROOT / "docs/containers.md").read_text()
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "server/kubernetes").glob("*.yaml")}
DEPLOYMENT = MANIFESTS["deployment"]
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
ENVIRONMENT = {each["name"]: each for each in CONTAINER["env"]}
VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""An older version that is in use, and the newest that the package knows."""


def valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kubernetes_takes(name: str, version: str) -> None:
    valid(MANIFESTS[name], version)


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = copy.deepcopy(DEPLOYMENT)
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        valid(wrong, VERSIONS[-1])


def test_a_pod_is_given_the_time_that_its_server_takes_to_stop() -> None:
    pre_stop, drain = (int(ENVIRONMENT[f"CONVSERVE_{name}_S"]["value"]) for name in ("PRE_STOP", "DRAIN"))
    assert POD["spec"]["terminationGracePeriodSeconds"] >= pre_stop + 3 + drain + 5
    assert pre_stop > 5, "an address takes some seconds to leave the Service"


def test_the_environment_sets_what_the_server_reads() -> None:
    rows = {settings.variable(name): name for name in settings.Settings.model_fields}
    settings.read({rows[name]: each["value"] for name, each in ENVIRONMENT.items() if "value" in each})
    assert {rows[name] for name, each in ENVIRONMENT.items() if "valueFrom" in each} == {"intra_op_threads"}


def test_the_autoscaler_goes_by_a_metric_that_is_exported_and_that_the_pages_rule_passes_on() -> None:
    (metric,) = MANIFESTS["autoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert (
        f'"{name.removeprefix("convserve_")}"'
        in (ROOT / "server/convserve_server/observability/metrics.py").read_text()
    )
    assert Holdings.__module__ == "convserve_server.observability.metrics"
    (rule,) = blocks("rules")["rules"]
    assert rule["seriesQuery"].startswith(f"{name}{{")


def blocks(key: str) -> Any:
    """Returns the YAML of the page that has a key at its top."""
    (found,) = (each for each in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)) if key in each)
    return found


def merged(value: Any, change: Any) -> Any:
    """Returns a value with a change as `kubectl patch` makes it: lists go by the names of what is in them."""
    if isinstance(value, dict) and isinstance(change, dict):
        found = value | {key: merged(value.get(key), each) for key, each in change.items()}
        return {key: each for key, each in found.items() if each is not None}
    if isinstance(value, list) and isinstance(change, list):
        key = "mountPath" if "mountPath" in change[0] else "name"
        changes = {each[key]: each for each in change}
        kept = [merged(each, changes.pop(each[key], {})) for each in value]
        return kept + list(changes.values())
    return change


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pages_patch_gives_tls_and_tokens_and_probes_that_can_use_them(version: str) -> None:
    patched = merged(DEPLOYMENT, blocks("spec"))
    valid(patched, version)
    (container,) = patched["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert set(container[probe]) & {"grpc", "exec"} == {"exec"}
        assert container[probe]["periodSeconds"] == CONTAINER[probe]["periodSeconds"]
    folders = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    (secret,) = (each for each in patched["spec"]["template"]["spec"]["volumes"] if "secret" in each)
    given = {each["name"]: each.get("value", "") for each in container["env"]}
    for name in ("TOKENS_FILE", "TLS_CERTIFICATE", "TLS_KEY"):
        assert given[f"CONVSERVE_{name}"].startswith(folders[secret["name"]] + "/")
    assert f"kubectl create secret generic {secret['secret']['secretName']} " in PAGE
