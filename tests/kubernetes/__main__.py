"""Tries the manifests on a cluster: that pods are confined, restarts under load, and the autoscaler.

    python -m tests.kubernetes --image REGISTRY/convserve/server:VERSION [--context NAME] [--restarts 2]
        [--bucket s3://BUCKET/PREFIX [--environment NAME=VALUE ...]]

With a bucket it is the overlay object-storage, and one more caller looks its layer up by name before each call. The
cluster is the one that kubectl leads to. The image has to be where its nodes can have it; on kind and minikube load it.
All is in a namespace of its own, which is deleted at the end. Without a cluster it says so and ends with status 0.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kubernetes.cluster import Namespace, NoClusterError
from tests.kubernetes.manifests import CALLERS, callers_manifests, trial_manifests

_REPLICAS = 2  # the autoscaler's least
_LONG = "--timeout=600s"
_STOP = "/tmp/stop"  # noqa: S108 -- in the callers' pod
_AUTOSCALER_S = 60  # it looks every 15 seconds
_CONFINED = """
import os
from pathlib import Path
print(os.getuid(), end=" ")
try:
    Path("/x").touch()
except OSError as error:
    print(error.strerror)
"""


class UnexpectedError(Exception):
    """Something is not as docs/containers.md says."""


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--image", help="the server's image, as the cluster's nodes know it")
    parser.add_argument("--context", default="", help="of kubectl; the current one without it")
    parser.add_argument("--restarts", type=int, default=2, help="how often the Deployment is rolled under load")
    parser.add_argument("--bucket", help="as --store takes it; servers share layers and names in it")
    parser.add_argument(
        "--environment", action="append", default=[], help="NAME=VALUE, of servers: the way to the bucket"
    )
    parser.add_argument("--keep", action="store_true", help="do not delete the namespace at the end")
    arguments = parser.parse_args()
    try:
        if not arguments.image:
            raise NoClusterError("--image names no image")
        space = Namespace(f"convserve-trial-{secrets.token_hex(3)}", arguments.context, arguments.keep)
    except NoClusterError as error:
        print(f"skipped: {error}")
        return 0
    bucket = dict(each.split("=", 1) for each in arguments.environment)
    if arguments.bucket:
        bucket["CONVSERVE_STORE"] = arguments.bucket
    say("cluster", f"Kubernetes {space.version}")
    try:
        with space:
            tried(space, arguments.image, arguments.restarts, bucket)
    except UnexpectedError as error:
        print(f"FAILED: {error}")
        return 1
    print("all of it holds")
    return 0


def tried(space: Namespace, image: str, restarts: int, bucket: Mapping[str, str]) -> None:
    """Tries everything. Raises UnexpectedError."""
    space.apply(trial_manifests(image, space.minor, bucket))
    # Its autoscaler brings the second one.
    eventually("replicas", lambda: space.get("deployment/convserve")["spec"]["replicas"], _REPLICAS)
    space.kubectl("rollout", "status", "deployment/convserve", _LONG)
    confined(space)
    restarted(space, image, restarts, *(["trial"] if bucket else []))
    left_alone(space)


def confined(space: Namespace) -> None:
    """Every pod runs as user 10001 and writes nowhere but to its volumes."""
    pods = servers(space)
    for pod in pods:
        said = space.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", _CONFINED).strip()
        expect("a pod's user and root file system", said, "10001 Read-only file system")
    expect("containers that started anew", restarts_of(pods), 0)


def restarted(space: Namespace, image: str, restarts: int, *names: str) -> None:
    """Rolling restarts under callers lose and falsify nothing, also without retries."""
    script = Path(__file__).with_name("callers.py").read_text(encoding="utf-8")
    target = f"convserve.{space.name}.svc.cluster.local:50051"
    space.apply(callers_manifests(image, script, target, _STOP, *names))
    space.kubectl("wait", "--for=condition=Ready", f"pod/{CALLERS}", _LONG)
    time.sleep(5)  # so that all callers call
    for number in range(restarts):
        started = time.monotonic()
        space.kubectl("rollout", "restart", "deployment/convserve")
        space.kubectl("rollout", "status", "deployment/convserve", _LONG)
        say(f"rolling restart {number + 1}", f"{time.monotonic() - started:.0f} s")
    # Pods of before are gone once they have drained.
    eventually("pods", lambda: len(servers(space)), _REPLICAS)
    # It fails where they have ended by themselves, and then their log says why.
    space.kubectl("exec", CALLERS, "--", "python", "-c", f"open({_STOP!r}, 'w')", check=False)
    ended = ("Succeeded", "Failed")
    eventually("callers", lambda: space.get(f"pod/{CALLERS}")["status"]["phase"] in ended, True)
    found = json.loads(space.kubectl("logs", CALLERS).strip().splitlines()[-1])
    for name, caller in found.items():
        say(name, f"{caller['answers']} answers")
        expect(f"what went wrong {name}", caller["wrong"], [])
        expect(f"{name}: any answers", caller["answers"] > 0, True)
    expect("containers that started anew", restarts_of(servers(space)), 0)


def left_alone(space: Namespace) -> None:
    """An autoscaler without its metric leaves the number of pods as it is."""
    conditions = space.get("hpa/convserve")["status"].get("conditions", [])
    if any(each["type"] == "ScalingActive" and each["status"] == "True" for each in conditions):
        say("autoscaler", "has its metric here, so it was not tried without")
        return
    space.kubectl("scale", "deployment/convserve", f"--replicas={_REPLICAS + 1}")
    time.sleep(_AUTOSCALER_S)
    expect("replicas", space.get("deployment/convserve")["spec"]["replicas"], _REPLICAS + 1)


def servers(space: Namespace) -> list[Any]:
    """Returns the pods of the Deployment."""
    return space.get("pods", "--selector", "app.kubernetes.io/name=convserve")["items"]


def restarts_of(pods: list[Any]) -> int:
    """Returns how often containers of pods were started anew."""
    return sum(each["restartCount"] for pod in pods for each in pod["status"].get("containerStatuses", ()))


def eventually(what: str, found: Any, wanted: Any, seconds: float = 300) -> None:
    """Waits until something is as it is wanted. Raises UnexpectedError."""
    deadline = time.monotonic() + seconds
    while (last := found()) != wanted:
        if time.monotonic() > deadline:
            raise UnexpectedError(f"{what}: expected {wanted!r}, found {last!r} after {seconds:.0f} s")
        time.sleep(2)


def expect(what: str, found: Any, wanted: Any) -> None:
    """Raises UnexpectedError if something is not as it is wanted."""
    if found != wanted:
        raise UnexpectedError(f"{what}: expected {wanted!r}, found {found!r}")
    say(what, found)


def say(what: str, value: Any) -> None:
    """Prints a line."""
    print(f"{what}: {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
