"""A TCP proxy behind which a server seems to fall silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.servers.counting_proxy import CountingProxy


class HoldingProxy(CountingProxy):
    """Passes everything on until the server has sent so many bytes, and no more until `release`."""

    def __init__(self, server: str, held_after_bytes: int) -> None:
        self._held_after_bytes = held_after_bytes
        self._released = threading.Event()
        super().__init__(server)

    def release(self) -> None:
        """Passes on what was held, and whatever comes."""
        self._released.set()

    def _forward(self, data: bytes, source: socket.socket, target: socket.socket) -> bool:
        if self.received_bytes > self._held_after_bytes:
            self._released.wait()
        return super()._forward(data, source, target)


@contextmanager
def holding_proxy(server: str, held_after_bytes: int) -> Iterator[HoldingProxy]:
    """Opens such a proxy in front of a server."""
    proxy = HoldingProxy(server, held_after_bytes)
    try:
        yield proxy
    finally:
        proxy.release()
        proxy.close()
