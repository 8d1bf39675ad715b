"""The compose stack under a project name of its own, and callers in containers beside it."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from convserve import __version__
from tests.containers.engine import Engine
from tests.support.observability.scrapes import Values, values
from tests.support.repository import ROOT

_CLIENT = f"convserve/client:{__version__}"
_MAX_S = 300


class Stack:
    """A context: at its end nothing of the stack is left, volumes included.

    Attributes:
        variables: What docker-compose.yml is given.
    """

    def __init__(self, found: Engine) -> None:
        self._engine = found
        self._project = f"convserve-trial-{secrets.token_hex(4)}"
        self._folder = tempfile.TemporaryDirectory(prefix="convserve-trial-")
        # Nobody outside the stack calls, so no port of this machine need be free.
        self.variables = {"CONVSERVE_PUBLISH": "127.0.0.1:"}
        self._callers: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._callers:
            self._engine.docker("rm", "--force", each)
        self.run("down", "--volumes", "--timeout", "60")
        self._folder.cleanup()

    def run(self, *arguments: str) -> str:
        """Runs docker compose."""
        project = ("--file", f"{ROOT}/docker-compose.yml", "--project-name", self._project, "--profile", "demo")
        return self._engine.compose(*project, *arguments, **self.variables)

    def up(self) -> None:
        """Starts the server, unless it runs, and waits until its image's own check says that it is healthy."""
        self.run("up", "--no-build", "--detach", "--wait", "--wait-timeout", str(_MAX_S), "server")

    def kill(self, service: str) -> None:
        """Ends a service as a crash would."""
        self.run("kill", service)

    def log(self, service: str) -> str:
        """Returns what a service has written."""
        return self.run("logs", "--no-log-prefix", service)

    def demo(self, service: str) -> str:
        """Runs a service of the demo to its end; returns what it writes."""
        return self.run("run", "--rm", "--no-deps", "-T", service)

    def call(self, program: str, *options: str) -> str:
        """Runs a program with the client's image beside the server, with its socket; returns what it prints."""
        return self._engine.docker("run", "--rm", *self._beside(options), _CLIENT, "-c", program)

    def metrics(self) -> Values:
        """Returns the server's metrics, read over the network."""
        program = "import urllib.request as u; print(u.urlopen('http://server:9464/metrics').read().decode())"
        return values(self.call(program))

    def begin(self, program: str) -> str:
        """Starts a caller that prints a number with every call; returns its name."""
        name = f"{self._project}-caller-{len(self._callers)}"
        self._engine.docker("run", "--detach", "--name", name, *self._beside(()), _CLIENT, "-u", "-c", program)
        self._callers.append(name)
        return name

    def count(self, name: str) -> int:
        """Returns how far a caller is."""
        lines = self._engine.docker("logs", "--tail", "1", name).splitlines()
        if lines and not lines[-1].isdigit():
            raise SystemExit(f"a caller ended:\n{self._engine.docker('logs', '--tail', '20', name)}")
        return int(lines[-1]) if lines else 0

    def wait_for(self, name: str, number: int) -> None:
        """Waits until a caller is so far."""
        deadline = time.monotonic() + _MAX_S
        while self.count(name) < number:
            if time.monotonic() > deadline:
                raise SystemExit(f"a caller has made {self.count(name)} calls. Expected {number}.")
            time.sleep(0.2)

    def end(self, name: str) -> str:
        """Asks a caller to stop; returns the last that it says."""
        self._engine.docker("stop", "--time", "60", name)
        return self._engine.docker("logs", "--tail", "1", name).strip()

    def certificates(self) -> Path:
        """Makes a certificate for the server's name; returns its folder."""
        folder = Path(self._folder.name)
        command = [sys.executable, "-m", "trustme", "--quiet", "--identities", "server", "--dir", str(folder)]
        subprocess.run(command, check=True)
        folder.chmod(0o755)
        (folder / "server.key").chmod(0o644)  # the server's user is not this one
        return folder

    def _beside(self, options: tuple[str, ...]) -> list[str]:
        network = [] if "--network" in options else ["--network", f"{self._project}_default"]
        socket = ["--volume", f"{self._project}_socket:/run/convserve"]
        return ["--read-only", "--entrypoint", "python", *socket, *network, *options]
