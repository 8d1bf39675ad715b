"""A server in a process of its own, on a free port, stopped by its process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ended_afterwards
from tests.support.repository import ROOT


@dataclass(frozen=True)
class RunningServer:
    """A server of its own process.

    Attributes:
        target: The address of its first listener.
        process: The process.
        log: The file with what it wrote to stderr.
        metrics: The URL of its metrics; empty without.
    """

    target: str
    process: subprocess.Popen[str]
    log: Path
    metrics: str = ""

    @property
    def log_lines(self) -> list[str]:
        """What it logged, without the line of its settings."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if " INFO settings: " not in line and '"message": "settings"' not in line]

    def stop(self) -> int:
        """Asks it to stop, waits until it has, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


# The environment of a server whose resident memory is what it holds: malloc gives back what is freed, at once. Else its
# threads' arenas keep what lies between pieces still in use, which are up to two messages of a call.
GIVES_BACK_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@contextmanager
def running_server(
    *arguments: str,
    environment: dict[str, str] | None = None,
    program: tuple[str, ...] = ("convserve", "serve"),
    limits: dict[int, int] | None = None,
) -> Iterator[RunningServer]:
    """Starts a server on a free port, waits until it is ready, and kills it afterwards if it still runs.

    `limits` are those of its process, by their kind, such as `resource.RLIMIT_NOFILE`.
    """
    listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
    command = [sys.executable, "-m", *program, "--device", "cpu", *listen, *arguments]
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    command = _limited(limits) + command if limits else command
    variables = {**os.environ, "PYTHONPATH": path.rstrip(":"), **(environment or {})}
    with (
        tempfile.NamedTemporaryFile("w+", suffix=".log") as log,
        ended_afterwards(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables) as process,
    ):
        said = _ready(process, Path(log.name))
        yield RunningServer(said["listening on"], process, Path(log.name), said.get("metrics on", ""))


def _limited(limits: dict[int, int]) -> list[str]:
    """Returns the beginning of a command that has limits.

    Popen's `preexec_fn` would fork, and what gRPC does in a fork of a process that has used it could end the child.
    """
    program = f"""
import os, resource, sys
for kind, most in {[(int(kind), most) for kind, most in limits.items()]}:
    resource.setrlimit(kind, (most, most))
os.execv(sys.argv[1], sys.argv[1:])
"""
    return [sys.executable, "-c", program]


def numpy_server(
    *arguments: str, environment: dict[str, str] | None = None, limits: dict[int, int] | None = None
) -> AbstractContextManager[RunningServer]:
    """Starts a server as `running_server` does, with numpy's engine: within a second, where TensorFlow takes some."""
    program = ("tests.support.engines.numpy_server",)
    return running_server(*arguments, environment=environment, program=program, limits=limits)


def _ready(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """Returns what a server says until it is ready: the first address of each kind."""
    assert process.stdout is not None
    said: dict[str, str] = {}
    limit = threading.Timer(300, process.kill)  # so that a test fails rather than waits for ever
    limit.start()
    try:
        for line in process.stdout:
            text = json.loads(line)["message"] if line.startswith("{") else line.strip()
            what, _, address = text.rpartition(" ")
            said.setdefault(what, address)
            if text.startswith("ready"):
                return said
    finally:
        limit.cancel()
    raise AssertionError(f"the server ended with status {process.wait()} before it was ready:\n{log.read_text()}")


Serve = Callable[..., AbstractContextManager[RunningServer]]
"""Starts a server as `running_server` does."""


def ended(*arguments: str) -> tuple[int, str, str]:
    """Runs a server that cannot start; returns its exit status, what it printed, and its error."""
    command = [sys.executable, "-m", "convserve", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr
