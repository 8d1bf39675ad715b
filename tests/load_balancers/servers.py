"""Servers behind a balancer, each at a place of its own, where it may be stopped, killed and started again."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from tests.support.observability.scrapes import CONVOLVE, STREAM, page, values
from tests.support.servers.server_process import RunningServer, Serve, numpy_server
from tests.support.waiting import eventually

_CALLS = (CONVOLVE, STREAM)


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@dataclass
class Place:
    """A server's ports, and the server that is there now."""

    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    server: RunningServer | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def metric(self, name: str, *labels: str) -> float:
        """Returns the sum of a metric's samples that have these labels among theirs."""
        now = values(page(f"http://127.0.0.1:{self.metrics_port}/metrics"))
        return sum(value for key, value in now.items() if key[0] == name and set(labels) <= set(key))

    def calls(self) -> float:
        """Returns how many forward passes were asked for here."""
        return sum(self.metric("convserve_requests_total", each) for each in _CALLS)


class Servers:
    """A context: at its end no server is left.

    Attributes:
        places: Where servers are or were.
    """

    def __init__(self, number: int, *arguments: str, serve: Serve = numpy_server) -> None:
        self.places = [Place() for _ in range(number)]
        self._arguments, self._serve, self._started = arguments, serve, ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def start(self, *numbers: int) -> None:
        """Starts servers at places, and waits until they are ready."""
        for number in numbers:
            place = self.places[number]
            listen = ("--listen", place.target, "--metrics", f"127.0.0.1:{place.metrics_port}")
            place.server = self._started.enter_context(self._serve(*listen, *self._arguments))

    def ask_to_stop(self, number: int) -> None:
        """Sends SIGTERM, and does not wait."""
        self._running(number).process.send_signal(signal.SIGTERM)

    def stop(self, number: int) -> int:
        """Sends SIGTERM, and waits; returns the exit status."""
        return self._running(number).stop()

    def kill(self, number: int) -> None:
        """Ends a server as a crash would."""
        process = self._running(number).process
        process.kill()
        process.wait()

    def wait_until_idle(self, *numbers: int, seconds: float) -> None:
        """Waits until no forward pass is in flight at places; fails if that takes longer."""
        eventually(lambda: not self.in_flight(*numbers), seconds)

    def in_flight(self, *numbers: int) -> float:
        """Returns how many forward passes are in flight at places."""
        return sum(self.places[n].metric("convserve_requests_in_flight", each) for n in numbers for each in _CALLS)

    def _running(self, number: int) -> RunningServer:
        server = self.places[number].server
        assert server is not None
        return server
