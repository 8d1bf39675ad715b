"""What all tests share: a real server, started once per test process on a free port and stopped by its process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import convserve
from tests.support.tritonclient.process import KINDS, TritonClient, triton_client

# A developer's own token: clients would show it, and servers ask for it.
os.environ.pop("CONVSERVE_TOKEN", None)
# As the server has it: Keras, which answers are held against, is to compute with kernels that are right.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

ROOT = Path(__file__).resolve().parent.parent


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


@contextmanager
def running_server(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[RunningServer]:
    """Starts `convserve serve` on a free port, waits until it says that it is ready, and stops it afterwards."""
    listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
    command = [sys.executable, "-m", "convserve", "serve", "--device", "cpu", *listen, *arguments]
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
        )
        try:
            said = _ready(process, Path(log.name))
            yield RunningServer(said["listening on"], process, Path(log.name), said.get("metrics on", ""))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _ready(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """Returns what a server says until it is ready: the first address of each kind."""
    assert process.stdout is not None
    said: dict[str, str] = {}
    for line in process.stdout:
        text = json.loads(line)["message"] if line.startswith("{") else line.strip()
        what, _, address = text.rpartition(" ")
        said.setdefault(what, address)
        if text.startswith("ready"):
            return said
    raise AssertionError(f"the server ended with status {process.wait()} before it was ready:\n{log.read_text()}")


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server on the CPU with default settings."""
    with running_server() as running:
        yield running
        assert running.process.poll() is None, f"the server died during the tests:\n{running.log.read_text()}"
        assert running.stop() == 0


@pytest.fixture
def client(server: RunningServer) -> Iterator[convserve.Client]:
    """A client of that server."""
    with convserve.Client(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def sharing_server() -> Iterator[RunningServer]:
    """A server that shares memory with callers on this machine."""
    with running_server("--shared-memory") as running:
        yield running
        assert running.process.poll() is None, f"the server died during the tests:\n{running.log.read_text()}"
        assert running.stop() == 0


@pytest.fixture(scope="session", params=KINDS)
def triton(request: pytest.FixtureRequest, sharing_server: RunningServer) -> Iterator[TritonClient]:
    """Triton's own client, blocking and awaited, of the server that shares memory."""
    with triton_client(request.param, sharing_server.target) as connected:
        yield connected
