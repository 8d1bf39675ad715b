"""A TCP proxy that counts what passes between a client and a server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class CountingProxy:
    """Passes everything on, in both directions.

    Attributes:
        target: The address that a client connects to instead of the server's.
        sent_bytes: What clients have sent to the server.
        received_bytes: What the server has sent to clients.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent_bytes = self.received_bytes = 0
        self._last_byte: float = float("inf")
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close_after(self, sent_bytes: int) -> None:
        """Breaks each connection over which something is sent when so many bytes more have been."""
        self._last_byte = self.sent_bytes + sent_bytes

    def close(self) -> None:
        """Breaks every connection, and waits until nothing is passed on any more."""
        with suppress(OSError):  # it was closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is shut down
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                self._threads.append(threading.Thread(target=self._connection, args=(client, server)))
                self._threads[-1].start()

    def _connection(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pass_on, args=(server, client, "received_bytes"))
        back.start()
        self._pass_on(client, server, "sent_bytes")
        back.join()
        # What nobody has read is answered with a reset then, as where a host or a network cuts a connection.
        client.close()
        server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, count: str) -> None:
        with suppress(OSError):  # one of the two is gone
            while data := source.recv(2**18):
                with self._lock:
                    setattr(self, count, getattr(self, count) + len(data))
                if not self._forward(data, source, target):
                    break
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _forward(self, data: bytes, source: socket.socket, target: socket.socket) -> bool:  # noqa: ARG002
        """Sends on what came; returns False to cut the connection."""
        if self.sent_bytes > self._last_byte:
            return False
        target.sendall(data)
        return True


@contextmanager
def counting_proxy(server: str) -> Iterator[CountingProxy]:
    """Opens a proxy in front of a server."""
    proxy = CountingProxy(server)
    try:
        yield proxy
    finally:
        proxy.close()
