"""Where a server listens: at one port of all addresses that a name has."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from convserve_server.settings import SettingsError
from convserve_server.transport import listening


class Server:
    """Has what gRPC's has to listen, and remembers the addresses."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def add_insecure_port(self, address: str) -> int:
        self.addresses.append(address)
        return int(address.rpartition(":")[2])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the ports that the system picks at the first address be taken at the second, as many as are wanted."""
    bound, left = listening._bound, [0]

    def chosen(family: int, ip: str, port: int) -> socket.socket:
        if ip == "127.0.0.2" and port and left[0]:
            left[0] -= 1
            raise OSError(98, "Address already in use")
        return bound(family, ip, port)

    found = [(int(socket.AF_INET), ip) for ip in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(listening, "_addresses", lambda *_: found)
    monkeypatch.setattr(listening, "_bound", chosen)
    return left


def test_a_port_that_is_taken_at_one_address_is_not_picked(taken: list[int]) -> None:
    taken[0] = 5
    server: Any = Server()
    port = listening.listen(server, "localhost:0", None).rpartition(":")[2]
    assert server.addresses == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
    assert int(port)


def test_where_none_is_free_the_reason_is_told(taken: list[int]) -> None:
    taken[0] = 1000
    server: Any = Server()
    with pytest.raises(SettingsError, match=r"Received localhost:0.*: Address already in use"):
        listening.listen(server, "localhost:0", None)
    assert server.addresses == []
