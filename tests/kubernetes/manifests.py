"""The overlays as a trial applies them: another image, small requests, and older kinds for older clusters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tests.support.kubernetes import FOLDER, built, container_of, merged, only

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CALLERS = "convserve-callers"
_SCRIPT = "callers.py"
_MEMORY = "3Gi"


def trial_manifests(image: str, minor: int, bucket: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Returns the manifests for a cluster of Kubernetes 1.MINOR.

    Args:
        image: The server's.
        minor: The cluster's version.
        bucket: The variables that lead servers to one bucket; without them each has its own layers.
    """
    manifests = copy.deepcopy(built(FOLDER / "overlays" / ("object-storage" if bucket else "cpu")))
    deployment = only(manifests, "Deployment")
    container = container_of(deployment)
    container |= {"image": image, "imagePullPolicy": "IfNotPresent"}
    container["resources"] = {"requests": {"cpu": "500m", "memory": _MEMORY}, "limits": {"memory": _MEMORY}}
    given = [{"name": name, "value": value} for name, value in (bucket or {}).items()]
    container["env"] = merged(container["env"], given) if given else container["env"]
    if minor < 24:  # which has no probes of gRPC
        for probe in _PROBES:
            del container[probe]["grpc"]
            container[probe]["httpGet"] = {"path": "/healthz", "port": "metrics"}
    budget, autoscaler = only(manifests, "PodDisruptionBudget"), only(manifests, "HorizontalPodAutoscaler")
    if minor < 26:
        budget["spec"].pop("unhealthyPodEvictionPolicy")
    if minor < 21:
        budget["apiVersion"] = "policy/v1beta1"
    if minor < 23:
        autoscaler["apiVersion"] = "autoscaling/v2beta2"
    return manifests


def callers_manifests(image: str, script: str, *arguments: str) -> list[dict[str, Any]]:
    """Returns a pod that runs callers.py, whose text is given, with arguments."""
    name = {"name": CALLERS}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": {_SCRIPT: script}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": name | {"labels": {"convserve-caller": "true"}},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001},
                "containers": [
                    {
                        "name": "callers",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python", f"/callers/{_SCRIPT}", *arguments],
                        "volumeMounts": [
                            {"name": "script", "mountPath": "/callers"},
                            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                        ],
                    }
                ],
                "volumes": [{"name": "script", "configMap": name}, {"name": "tmp", "emptyDir": {}}],
            },
        },
    ]
