"""The trial on a cluster, without one: what it applies, what it asks kubectl, and that it says why it does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml

from convserve_server import settings
from convserve_server.memory import budget
from tests.kubernetes import __main__ as trial
from tests.kubernetes import cluster as trial_cluster
from tests.kubernetes.manifests import callers_manifests, trial_manifests
from tests.support.kubernetes import container_of, environment_of, only
from tests.support.repository import ROOT

CALLERS = {name: {"answers": 7, "wrong": []} for name in ("without retries", "with retries", "mapped items")}
WRONG = {"mapped items": {"answers": 7, "wrong": ["3: UnavailableError"]}}


class Kubectl:
    """What answers as kubectl does on a cluster with two servers."""

    def __init__(self, callers: Any, root: str) -> None:
        self.commands, self.applied, self._replicas = list[str](), list[str](), 2
        self._callers, self._root = callers, root

    def run(self, command: list[str], *, input: str | None, **_: Any) -> subprocess.CompletedProcess[str]:  # noqa: A002
        """Stands for `subprocess.run`."""
        text = " ".join(command[1:])
        self.commands.append(text)
        if input is not None:
            self.applied.append(input)
        if " scale " in text:
            self._replicas = int(text.rpartition("=")[2])
        return subprocess.CompletedProcess(command, 0, self._answer(text), "")

    def _answer(self, text: str) -> str:
        status = {"containerStatuses": [{"restartCount": 0}], "phase": "Succeeded"}
        pod = {"metadata": {"name": "p"}, "status": status}
        answers = {
            "version": {"serverVersion": {"gitVersion": "v1.31.2", "minor": "31+"}},
            "get pods": {"items": [pod, pod]},
            "get pod/": pod,
            "get hpa/": {"status": {"conditions": [{"type": "ScalingActive", "status": "False"}]}},
            "get deployment/": {"spec": {"replicas": self._replicas}},
        }
        if " exec " in text:
            return f"10001 {self._root}\n"
        if " logs " in text:
            return f"INFO something\n{json.dumps(self._callers)}\n"
        return next((json.dumps(answer) for words, answer in answers.items() if words in text), "")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the trial on a cluster of which there is no more than a kubectl."""

    def run(callers: Any = CALLERS, root: str = "Read-only file system") -> tuple[int, Kubectl]:
        kubectl = Kubectl(callers, root)
        monkeypatch.setattr(trial_cluster, "subprocess", SimpleNamespace(run=kubectl.run))
        monkeypatch.setattr(trial_cluster, "shutil", SimpleNamespace(which=str))
        monkeypatch.setattr(trial, "time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic))
        monkeypatch.setattr(sys, "argv", ["trial", "--image", "registry/server:1"])
        return trial.main(), kubectl

    return run


def test_the_trial_rolls_the_deployment_under_callers_and_leaves_nothing(cluster: Any) -> None:
    status, seen = cluster()
    assert status == 0
    assert sum("rollout restart deployment/convserve" in each for each in seen.commands) == 2
    (created,) = (each.rpartition(" ")[2] for each in seen.commands if each.startswith("create namespace "))
    assert seen.commands[-1] == f"delete namespace {created} --wait=false"
    servers, callers = ([*yaml.safe_load_all(each)] for each in seen.applied)
    assert container_of(only(servers, "Deployment"))["image"] == "registry/server:1"
    assert f"convserve.{created}.svc.cluster.local:50051" in only(callers, "Pod")["spec"]["containers"][0]["command"]
    assert "RetryRule(attempts=1)" in only(callers, "ConfigMap")["data"]["callers.py"]


@pytest.mark.parametrize("wrong", [{"callers": WRONG}, {"root": "None"}])
def test_the_trial_fails_and_cleans_up_where_something_is_wrong(
    cluster: Any, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, seen = cluster(**wrong)
    assert status == 1
    assert seen.commands[-1].startswith("delete namespace ")
    assert "FAILED: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"), [((), "--image names no image"), (("--image", "i"), "kubectl is missing")]
)
def test_the_trial_says_why_it_does_not_run(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kubernetes", *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"skipped: {why}\n"), done.stderr


@pytest.mark.parametrize("minor", [25, 28, 31])
def test_what_the_trial_applies_is_what_that_kubernetes_takes(minor: int) -> None:
    shared = trial_manifests("i", minor, {"CONVSERVE_STORE": "s3://b/p", "AWS_ENDPOINT": "http://b"})
    for manifest in (*trial_manifests("i", minor), *shared, *callers_manifests("i", "", "t")):
        kubernetes_validate.validate(manifest, f"1.{minor}", strict=True)


def test_with_a_bucket_the_trial_leads_servers_to_it() -> None:
    deployment = only(
        trial_manifests("i", 31, {"CONVSERVE_STORE": "s3://b/p", "AWS_ENDPOINT": "http://b"}), "Deployment"
    )
    environment = environment_of(deployment)
    assert (environment["CONVSERVE_STORE"], environment["AWS_ENDPOINT"]) == ("s3://b/p", "http://b")
    assert environment["CONVSERVE_STORE_CACHE"]  # the overlay's own are kept


def test_an_older_kubernetes_is_given_its_own_kinds() -> None:
    manifests = trial_manifests("i", 20)
    assert only(manifests, "PodDisruptionBudget")["apiVersion"] == "policy/v1beta1"
    assert only(manifests, "HorizontalPodAutoscaler")["apiVersion"] == "autoscaling/v2beta2"
    probe = container_of(only(manifests, "Deployment"))["readinessProbe"]
    assert probe["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert "grpc" not in probe


def test_what_callers_can_take_fits_a_pod_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = only(trial_manifests("i", 31), "Deployment")
    memory = int(container_of(deployment)["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
    monkeypatch.setattr(budget, "container_memory_bytes", lambda: memory)
    monkeypatch.setattr(budget, "machine_memory_bytes", lambda: memory)
    names = {settings.variable(name): name for name in settings.Settings.model_fields}
    given = settings.read({names[key]: value for key, value in environment_of(deployment).items()})
    assert budget.described(budget.fitted(given))[1]
