"""Where a server listens: at one port of all addresses that a name has."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from convserve_server import addresses
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
    bound, left = addresses.bound, [0]

    def chosen(family: int, ip: str, port: int) -> socket.socket:
        if ip == "127.0.0.2" and port and left[0]:
            left[0] -= 1
            raise OSError(98, "Address already in use")
        return bound(family, ip, port)

    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    monkeypatch.setattr(addresses, "bound", chosen)
    return left


def test_a_port_that_is_taken_at_one_address_is_not_picked(taken: list[int]) -> None:
    taken[0] = 5
    server: Any = Server()
    listener = listening.Listener("two.test:0")
    listener.listen(server, None)
    port = listener.address.rpartition(":")[2]
    assert server.addresses == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
    assert int(port)


def test_where_none_is_free_the_reason_is_told(taken: list[int]) -> None:
    taken[0] = 1000
    with pytest.raises(SettingsError, match=r"Received two.test:0.*: Address already in use"):
        listening.Listener("two.test:0")


def test_what_is_held_is_not_connected_to_before_it_is_listened_on() -> None:
    listener = listening.Listener("127.0.0.1:0")
    host, _, port = listener.address.rpartition(":")
    with closing(listener), pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 5)


@pytest.mark.parametrize("kind", ["port", "path"])
def test_what_is_taken_meanwhile_is_told_with_the_reason(kind: str, tmp_path: Path) -> None:
    server: Any = Server()
    listener = listening.Listener("127.0.0.1:0" if kind == "port" else f"unix://{tmp_path}/socket")
    with socket.socket(socket.AF_INET if kind == "port" else socket.AF_UNIX) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address = listener.address
        other.bind(("127.0.0.1", int(address.rpartition(":")[2])) if kind == "port" else f"{tmp_path}/socket")
        other.listen()
        with pytest.raises(SettingsError, match=rf"^--listen: .* Received {address}: Address already in use\.$"):
            listener.listen(server, None)
    assert server.addresses == []
