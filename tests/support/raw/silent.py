"""Connections that speak HTTP/2 as little as they need to be kept: they answer pings, and call nothing."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import ExitStack
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_HEAD, _SETTINGS, _PING, _ACK = 9, 4, 6, 1


class SilentConnections:
    """Any number of connections, which a thread keeps alive. As a context it ends them.

    Attributes:
        closed: How many of them the server has closed.
    """

    def __init__(self, target: str, *, speaks: bool = True) -> None:
        """Connects to a target; `speaks`: whether HTTP/2 is spoken at all."""
        host, _, port = target.rpartition(":")
        self._address, self._speaks = (host, int(port)), speaks
        self._opened = ExitStack()
        self._selector = self._opened.enter_context(selectors.DefaultSelector())
        self._ended = threading.Event()
        self.closed = 0
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def open(self, count: int) -> None:
        """Opens so many more."""
        for _ in range(count):
            connection = self._opened.enter_context(socket.create_connection(self._address, timeout=30))
            if self._speaks:
                connection.sendall(_PREFACE)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, bytearray())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._opened.close()

    def _answer(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.05):
                connection, buffer = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                try:
                    received = connection.recv(2**16)
                    connection.sendall(b"".join(_answers(buffer, received)))
                except OSError:
                    received = b""
                if not received:
                    self._selector.unregister(connection)
                    connection.close()
                    self.closed += 1


def _answers(buffer: bytearray, received: bytes) -> list[bytes]:
    """Returns the answers to the frames that are whole, of which the buffer keeps none."""
    buffer += received
    answers = []
    while len(buffer) >= _HEAD and len(buffer) >= (size := _HEAD + int.from_bytes(buffer[:3], "big")):
        kind, flags, payload = buffer[3], buffer[4], bytes(buffer[_HEAD:size])
        del buffer[:size]
        if not flags & _ACK and kind in (_SETTINGS, _PING):
            body = payload if kind == _PING else b""
            answers.append(len(body).to_bytes(3, "big") + bytes([kind, _ACK, 0, 0, 0, 0]) + body)
    return answers
