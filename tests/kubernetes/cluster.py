"""A cluster by kubectl, in a namespace of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import TracebackType
from typing import Any, Self

import yaml


class NoClusterError(Exception):
    """There is no cluster to try it on; the text says why."""


class Namespace:
    """A namespace that goes with all that is in it at the end of the block."""

    def __init__(self, name: str, context: str = "", keep: bool = False) -> None:
        """Finds the cluster that kubectl leads to. Raises NoClusterError."""
        if shutil.which("kubectl") is None:
            raise NoClusterError("kubectl is missing")
        self.name, self._keep = name, keep
        self._command = ["kubectl", *(("--context", context) if context else ())]
        done = self._run("version", "-o", "json", check=False)
        server = json.loads(done.stdout).get("serverVersion") if done.stdout else None
        if server is None:
            lines = done.stderr.strip().splitlines()
            raise NoClusterError(f"kubectl reaches no cluster: {lines[-1] if lines else 'it says no server version'}")
        self.version = server["gitVersion"]
        self.minor = int(server["minor"].rstrip("+"))

    def __enter__(self) -> Self:
        self._run("create", "namespace", self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.kubectl("get", "pods,deployment,hpa", "-o", "wide", check=False))
            print(self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-3000:])
        if not self._keep:
            self._run("delete", "namespace", self.name, "--wait=false")

    def kubectl(self, *words: str, given: str | None = None, check: bool = True) -> str:
        """Runs kubectl in the namespace; returns what it prints. Raises RuntimeError if it fails."""
        return self._run("--namespace", self.name, *words, given=given, check=check).stdout

    def get(self, what: str, *options: str) -> Any:
        """Returns what is there as an object."""
        return json.loads(self.kubectl("get", what, *options, "-o", "json"))

    def apply(self, manifests: list[dict[str, Any]]) -> None:
        """Applies manifests."""
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(manifests))

    def _run(self, *words: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self._command, *words], input=given, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done
