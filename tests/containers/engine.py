"""An engine for containers: the one that runs, or one started for the trial in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import eventually

_START_S = 60


class NoEngineError(Exception):
    """There is no engine, and none can be started; the text says why."""


@dataclass(frozen=True)
class Engine:
    """How the engine is asked.

    Attributes:
        environment: The environment of commands that ask it.
        is_ours: Whether it was started for the trial.
    """

    environment: dict[str, str]
    is_ours: bool

    def docker(self, *arguments: str) -> str:
        """Runs docker; returns what it prints, both streams together."""
        return self._checked([_client(), *arguments], {})

    def compose(self, *arguments: str, **variables: str) -> str:
        """Runs docker compose in an environment with these variables too; returns what it prints."""
        beside = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
        return self._checked([*([beside] if beside else [_client(), "compose"]), *arguments], variables)

    def answers(self) -> bool:
        """Returns whether it runs."""
        return self.run([_client(), "version", "--format", "{{.Server.Version}}"], {}).returncode == 0

    def run(self, command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Runs a command that asks it, however that ends."""
        return subprocess.run(
            command, env={**self.environment, **variables}, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _checked(self, command: list[str], variables: dict[str, str]) -> str:
        done = self.run(command, variables)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
        return done.stdout


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Yields an engine.

    Args:
        folder: Where an engine that is started keeps everything, images too.

    Raises:
        NoEngineError: If there is none.
    """
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    found = Engine(environment, is_ours=False)
    if shutil.which("docker") and found.answers():
        yield found
        return
    lacking = [each for each in ("docker", "dockerd") if not shutil.which(each)]
    if lacking:
        raise NoEngineError(f"no engine runs, and to start one {' and '.join(lacking)} is missing (Debian: docker.io)")
    if os.geteuid() != 0:
        raise NoEngineError("no engine runs, and only root can start one")
    folder.mkdir(parents=True, exist_ok=True)
    host = f"unix://{folder}/socket"
    command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/run"]
    command += ["--pidfile", f"{folder}/pid", "--host", host]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            started = Engine({**environment, "DOCKER_HOST": host}, is_ours=True)
            eventually(lambda: process.poll() is not None or started.answers(), _START_S)
            if process.poll() is not None:
                last = (folder / "log").read_text().splitlines()[-1:]
                raise NoEngineError(f"dockerd ended with status {process.returncode}: {' '.join(last)}")
            yield started
        finally:
            process.terminate()
            process.wait()


def _client() -> str:
    # Without its buildx plugin a newer client cannot ask for BuildKit; Debian's own can.
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
