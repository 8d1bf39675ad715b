"""Serves the metrics over HTTP, to whoever asks quickly: slow and silent connections keep nobody out."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer

from convserve_server.addresses import places
from convserve_server.observability.metrics_page import MetricsPage

_MAX_SCRAPES = 16  # at once, each of which has a thread
_SCRAPE_S = 10.0  # that one may take, from the connection to the last byte
_DROPPED_S = 1.0  # until the thread of one that was dropped has noticed
_EVERYWHERE = ("::", "0.0.0.0")  # noqa: S104 (what a user may ask for)

log = logging.getLogger("convserve")


class MetricsEndpoint:
    """Serves a registry.

    prometheus_client.start_http_server would take a thread for each scrape, however many, for as long as it stalls.
    """

    def __init__(self, address: str, registry: CollectorRegistry, is_serving: Callable[[], bool]) -> None:
        """Starts to serve at "HOST:PORT"; port 0 picks a free one. Raises OSError if the address is not free.

        A name is served at all its addresses on this machine, and 0.0.0.0 by IPv6 too, as gRPC does.
        """
        host, _, port = address.rpartition(":")
        scrapes, app = _Scrapes(), MetricsPage(registry, is_serving)
        self._servers: list[_Server] = []
        found, number = _places(host.strip("[]"), int(port))
        with ExitStack() as opened:
            opened.callback(self.close)
            for family, ip in found:
                server = _Server(family, ip, number, scrapes)
                server.set_app(app)
                threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
                self._servers.append(server)
                number = server.server_port
            opened.pop_all()
        self.url = f"http://{host}:{number}/metrics"

    def close(self) -> None:
        """Stops."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


def _places(host: str, port: int) -> tuple[list[tuple[int, str]], int]:
    if host in _EVERYWHERE:
        with suppress(OSError):  # of a machine without IPv6
            return places("::", port)  # which takes IPv4 too
        host = _EVERYWHERE[1]
    return places(host, port)


class _Scrapes:
    """The scrapes in progress. There are as many as slots; a further one takes the place of an old one."""

    def __init__(self) -> None:
        self._slots, self._lock = threading.Semaphore(_MAX_SCRAPES), threading.Lock()
        self._open: dict[Any, tuple[str, float]] = {}  # by connection, the oldest first: whose, and since when

    def begin(self, connection: Any, host: str) -> bool:
        """Takes a slot, if need be that of the oldest scrape of the host that has most. Returns whether it did."""
        if not self._slots.acquire(blocking=False):
            with self._lock:
                busiest = Counter(each for each, _ in self._open.values()).most_common(1)
                self._drop([each for each, (owner, _) in self._open.items() if owner in dict(busiest)][:1])
            if not self._slots.acquire(timeout=_DROPPED_S):
                return False
        with self._lock:
            self._open[connection] = host, time.monotonic()
        return True

    def end(self, connection: Any) -> None:
        """Frees a slot; of a connection that has none nothing."""
        with self._lock:
            if self._open.pop(connection, None) is None:
                return
        self._slots.release()

    def drop_late(self) -> None:
        """Drops those that have taken too long."""
        with self._lock:
            self._drop([each for each, (_, since) in self._open.items() if time.monotonic() - since > _SCRAPE_S])

    def _drop(self, connections: list[Any]) -> None:
        for connection in connections:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingWSGIServer):
    def __init__(self, family: int, ip: str, port: int, scrapes: _Scrapes) -> None:
        self.address_family, self._scrapes = family, scrapes
        super().__init__((ip, port), _Scrape)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # whatever the system's default is
            only = self.server_address[0] not in _EVERYWHERE
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        super().server_bind()

    def service_actions(self) -> None:  # twice a second at least
        self._scrapes.drop_late()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._scrapes.begin(request, str(client_address[0])):
            super().process_request(request, client_address)
        else:
            super().shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:  # however it ended, also before it had a thread
        self._scrapes.end(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("metrics were not fetched by %s", client_address[0], exc_info=True)


class _Scrape(WSGIRequestHandler):
    def parse_request(self) -> bool:
        """Returns whether there is a request, to its end: a connection may be closed within it, or dropped."""
        lines, opened = [b""], self.rfile
        self.rfile = SimpleNamespace(readline=lambda size=-1: lines.append(opened.readline(size)) or lines[-1])  # type: ignore[assignment,func-returns-value]
        try:
            return super().parse_request() and bool(lines[-1])
        finally:
            self.rfile = opened

    def log_message(self, *_: Any) -> None:
        """Does not log requests."""
