"""The load balancers that can be tried: which versions, and how each is started with the file that users get."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load_balancers.servers import Place, free_port
from tests.support.processes import ended_afterwards
from tests.support.repository import ROOT
from tests.support.waiting import eventually

FILES = ROOT / "server/load_balancers"
LAST = "10.0.0.13"  # of the servers in the files; those that a trial has beyond it are put beside it
_PORT, _TLS_PORT, _WEB_PORT, _METRICS_PORT = "50051", "50443", "8080", "9464"


class NotTriedError(Exception):
    """This machine has no such balancer, or one that is too old; the text says so."""


@dataclass(frozen=True)
class Balancer:
    """A load balancer.

    Attributes:
        name: What its file is called, too.
        file: Its configuration.
        least: Its oldest version that works.
        version: The arguments that make it say its version.
        command: The arguments that start it, by its file and the folder of what it writes.
        asks_health: Whether it asks servers for their health, rather than wait until a call fails.
        speaks_grpc: Whether it is for gRPC's own clients, rather than for JSON and browsers.
    """

    name: str
    file: str
    program: str
    least: tuple[int, int]
    version: Sequence[str]
    command: Callable[[Path], Sequence[str]]
    asks_health: bool = True
    speaks_grpc: bool = True

    def found(self) -> str:
        """Returns the version on this machine; raises NotTriedError."""
        if (path := shutil.which(self.program)) is None:
            raise NotTriedError(f"there is no {self.program}")
        done = subprocess.run([path, *self.version], capture_output=True, text=True, check=False)
        numbers = re.search(r"[ /](\d+)\.(\d+)\.(\d+)", done.stdout + done.stderr)
        if numbers is None:
            raise NotTriedError(f"{path} does not say its version")
        if (int(numbers[1]), int(numbers[2])) < self.least:
            raise NotTriedError(f"{path} is {numbers[0][1:]}, older than {'.'.join(map(str, self.least))}")
        return numbers[0][1:]

    def text(self) -> str:
        """Returns the file that users get."""
        return (FILES / self.file).read_text()


def _nginx(file: Path) -> Sequence[str]:
    return ("-p", str(file.parent), "-c", str(file), "-g", "daemon off;")


def _haproxy(file: Path) -> Sequence[str]:
    return ("-db", "-f", str(file))


def _envoy(file: Path) -> Sequence[str]:
    return ("-c", str(file), "--use-dynamic-base-id", "--log-level", "warn", "--concurrency", "2")


BALANCERS = (
    Balancer("nginx", "nginx.conf", "nginx", (1, 22), ("-v",), _nginx, asks_health=False),
    Balancer("haproxy", "haproxy.cfg", "haproxy", (3, 1), ("-v",), _haproxy),
    Balancer("envoy", "envoy.yaml", "envoy", (1, 30), ("--version",), _envoy),
    Balancer("envoy-web", "envoy-web.yaml", "envoy", (1, 30), ("--version",), _envoy, speaks_grpc=False),
)


def placed(
    text: str,
    places: Sequence[Place],
    port: int,
    tls_port: int,
    folder: Path,
    *,
    healthz: bool = False,
    tls: bool = False,
) -> str:
    """Returns a configuration with addresses, ports and files of this machine, changed as a user would change it."""
    if tls:
        text = text.replace("#tls# ", "")
    if healthz:
        text = "".join(line for line in text.splitlines(True) if not line.rstrip().endswith("# grpc-check"))
        text = text.replace("#healthz# ", "")
    lines = []
    for line in text.splitlines():
        address = re.search(r"\b10\.0\.0\.1(\d)\b", line)
        if address is None or line.lstrip().startswith("#"):
            lines.append(_listening_here(line, port, tls_port))
            continue
        first = int(address[1]) - 1
        for number, place in enumerate(places[first : None if address[0] == LAST else first + 1], first):
            here = line.replace(address[0], "127.0.0.1").replace(_PORT, str(place.port))
            here = re.sub(r"(?<= server )[abc](?= )", "abcdef"[number], here)
            lines.append(here.replace(_METRICS_PORT, str(place.metrics_port)))
    text = "\n".join(lines) + "\n"
    return re.sub(r"/etc/\w+/(?=convserve\.)|/run/|/var/log/nginx/", f"{folder}/", text)


def _listening_here(line: str, port: int, tls_port: int) -> str:
    """Returns a line that listens on loopback at our ports, if it listens."""
    for theirs, ours in ((_PORT, port), (_WEB_PORT, port), (_TLS_PORT, tls_port)):
        line = re.sub(rf"(listen |bind ):?{theirs}\b", rf"\g<1>127.0.0.1:{ours}", line)
        line = line.replace(f"0.0.0.0, port_value: {theirs}", f"127.0.0.1, port_value: {ours}")
    return line


@contextmanager
def running(
    balancer: Balancer, places: Sequence[Place], folder: Path, *, healthz: bool = False, tls: bool = False
) -> Iterator[str]:
    """Starts a balancer before servers, and gives its address, or the one with TLS.

    The folder has convserve.pem and convserve.key, and gets what the balancer writes.
    """
    port, tls_port = free_port(), free_port()
    file = folder / balancer.file
    file.write_text(placed(balancer.text(), places, port, tls_port, folder, healthz=healthz, tls=tls))
    program = shutil.which(balancer.program)
    assert program is not None
    log = folder / f"{balancer.name}.log"
    with (
        log.open("w") as writes,
        ended_afterwards([program, *balancer.command(file)], stderr=writes, stdout=writes) as process,
    ):
        target_port = tls_port if tls and _TLS_PORT in balancer.text() else port

        def listens() -> bool:
            assert process.poll() is None, f"{balancer.name} ended:\n{log.read_text()}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", target_port)) == 0

        eventually(listens)
        yield f"localhost:{target_port}"
