"""The manifests: what Kubernetes' own schemas say of them, and that they fit the server."""

from __future__ import annotations

import copy
import json
import operator
import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from convserve_server import settings
from tests.support.kubernetes import FOLDER, OVERLAYS, built, container_of, environment_of, merged, only
from tests.support.observability.exported import exported
from tests.support.repository import ROOT

PAGE = (ROOT / "docs/containers.md").read_text()
BUILT = {name: built(FOLDER / "overlays" / name) for name in OVERLAYS}
MANIFESTS = [(name, each["kind"], each) for name in OVERLAYS for each in BUILT[name]]
DEPLOYMENT = only(BUILT["cpu"], "Deployment")
POD = DEPLOYMENT["spec"]["template"]
CONTAINER = container_of(DEPLOYMENT)
ENVIRONMENT = {each["name"]: each for each in CONTAINER["env"]}
VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""An older version that is in use, and the newest that the package knows."""


def valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [each for *_, each in MANIFESTS], ids=[" ".join(ids) for *ids, _ in MANIFESTS])
def test_a_manifest_is_what_kubernetes_takes(manifest: dict[str, Any], version: str) -> None:
    valid(manifest, version)


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = copy.deepcopy(DEPLOYMENT)
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        valid(wrong, VERSIONS[-1])


def test_a_pod_is_given_the_time_that_its_server_takes_to_stop() -> None:
    pre_stop, drain = (int(ENVIRONMENT[f"CONVSERVE_{name}_S"]["value"]) for name in ("PRE_STOP", "DRAIN"))
    assert POD["spec"]["terminationGracePeriodSeconds"] >= pre_stop + 3 + drain + 5
    assert pre_stop > 5, "an address takes some seconds to leave the Service"


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_environment_sets_what_the_server_reads(name: str) -> None:
    rows = {settings.variable(name): name for name in settings.Settings.model_fields}
    deployment = only(BUILT[name], "Deployment")
    settings.read({rows[name]: value for name, value in environment_of(deployment).items()})
    env = container_of(deployment)["env"]
    assert {rows[each["name"]] for each in env if "valueFrom" in each} == {"intra_op_threads"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_may_do_nothing_but_serve(name: str) -> None:
    deployment = only(BUILT[name], "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (10001, True)
    assert pod["automountServiceAccountToken"] is False
    assert container_of(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_overlays_differ_in_what_they_are_named_for() -> None:
    cpu, gpu, bucket = (only(BUILT[name], "Deployment") for name in OVERLAYS)
    assert container_of(cpu)["image"].startswith("convserve/server:")
    assert container_of(gpu)["image"].startswith("convserve/server-gpu:")
    assert container_of(gpu)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert environment_of(gpu)["CONVSERVE_DEVICE"] == "gpu:0"
    store = environment_of(bucket)["CONVSERVE_STORE"]
    assert settings.BUCKET.fullmatch(store)
    cache = environment_of(bucket)["CONVSERVE_STORE_CACHE"]
    assert cache in [each["mountPath"] for each in container_of(bucket)["volumeMounts"]]
    account = only(BUILT["object-storage"], "ServiceAccount")["metadata"]["name"]
    assert bucket["spec"]["template"]["spec"]["serviceAccountName"] == account


def test_the_page_names_every_overlay() -> None:
    for name in (*(f"overlays/{each}" for each in OVERLAYS), "monitoring"):
        assert f"kubectl apply -k server/kubernetes/{name}" in PAGE


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to compare with")
@pytest.mark.parametrize("folder", [*(f"overlays/{each}" for each in OVERLAYS), "monitoring"])
def test_kubectl_builds_the_same(folder: str) -> None:
    done = subprocess.run(["kubectl", "kustomize", FOLDER / folder], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found, ours = (sorted(map(_sorted, each)) for each in (yaml.safe_load_all(done.stdout), built(FOLDER / folder)))
    assert found == ours


def _sorted(manifest: Any) -> str:
    """Returns a manifest as text, its variables in the order of their names, as a merge may change that."""
    manifest = copy.deepcopy(manifest)
    if manifest["kind"] == "Deployment":
        container_of(manifest)["env"].sort(key=operator.itemgetter("name"))
    return json.dumps(manifest, sort_keys=True)


def test_the_autoscaler_goes_by_a_metric_that_is_exported_and_that_the_pages_rule_passes_on() -> None:
    (metric,) = only(BUILT["cpu"], "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in exported()
    (rule,) = blocks("rules")["rules"]
    assert rule["seriesQuery"].startswith(f"{name}{{")


def blocks(key: str) -> Any:
    """Returns the YAML of the page that has a key at its top."""
    (found,) = (each for each in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)) if key in each)
    return found


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
