"""Which connections are closed where there are too many."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from convserve_server.auth.identity import ALL, Identity, anyone
from convserve_server.transport.connections import Connections, with_spare
from tests.support.waiting import eventually

MAX = 4


class Listener:
    """A server's connections, of which the test has both ends."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.opened = ExitStack()
        self.now = 100.0
        self.connections = Connections(MAX, with_spare(MAX), clock=lambda: self.now)
        self.family = socket.AF_INET6 if ":" in address else socket.AF_UNIX if "/" in address else socket.AF_INET
        self.socket = self.opened.enter_context(socket.socket(self.family))
        self.socket.bind(address if "/" in address else (address, 0))
        self.socket.listen()
        at = f"unix:{address}" if "/" in address else f"{address}:{self.socket.getsockname()[1]}"
        self.connections.listens_at(at)

    def connect(self) -> socket.socket:
        """Returns a caller's end."""
        caller = self.opened.enter_context(socket.socket(self.family))
        caller.settimeout(30)
        caller.connect(self.socket.getsockname())
        self.opened.enter_context(self.socket.accept()[0])
        return caller

    def peer(self, caller: socket.socket) -> str:
        """Returns a caller's name, as gRPC has it."""
        host, port, *_ = caller.getsockname()
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def call(self, caller: socket.socket, token: str = "", *, ends: bool = True) -> None:
        peer = self.peer(caller)
        self.connections.began(peer, caller)
        self.connections.identified(peer, Identity(token, ALL) if token else anyone(peer))
        if ends:
            self.connections.ended(peer, caller)

    def closed(self, *callers: socket.socket) -> list[int]:
        """Makes room; returns which of the callers have no connection any more."""
        self.connections.make_room()
        return [number for number, caller in enumerate(callers) if is_closed(caller)]


def is_closed(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    listening = Listener(request.param)
    with listening.opened:
        yield listening


def test_none_is_closed_as_long_as_there_are_not_too_many(listener: Listener) -> None:
    assert listener.closed(*(listener.connect() for _ in range(MAX))) == []


def test_those_that_have_carried_no_call_go_first(listener: Listener) -> None:
    used = [listener.connect() for _ in range(2)]
    for each in used:
        listener.call(each)
    silent = [listener.connect() for _ in range(2)]
    listener.connections.make_room()
    listener.now += 60
    callers = [*used, *silent, listener.connect(), listener.connect()]
    assert listener.closed(*callers) == [2, 3, 4]  # and one more than there are too many


def test_a_new_one_has_a_moment_for_its_first_call(listener: Listener) -> None:
    callers = [listener.connect() for _ in range(MAX)]
    for each in callers:
        listener.now += 1
        listener.call(each)
    listener.now += 60
    assert listener.closed(*callers, listener.connect()) == [0]  # that one is idle for longest


def test_of_many_new_ones_the_latest_has_that_moment(listener: Listener) -> None:
    used = listener.connect()
    listener.call(used)
    listener.now += 60
    flood = []
    for _ in range(2 * MAX):
        flood.append(listener.connect())
        listener.connections.make_room()
        listener.now += 0.1
    assert not is_closed(used)
    assert not is_closed(flood[-1])
    assert is_closed(flood[0])


def test_those_that_carry_a_call_stay(listener: Listener) -> None:
    callers = [listener.connect() for _ in range(MAX + 2)]
    for each in callers:
        listener.call(each, ends=False)
    assert listener.closed(*callers) == []
    listener.connections.ended(listener.peer(callers[3]), callers[3])
    assert listener.closed(*callers) == [3]


def test_those_of_known_callers_go_last_and_of_them_the_ones_of_whoever_has_most(listener: Listener) -> None:
    modest, *greedy = (listener.connect() for _ in range(MAX))
    listener.call(modest, "modest")
    for each in greedy:
        listener.now += 1
        listener.call(each, "greedy")
    strangers = [listener.connect() for _ in range(2)]
    for each in strangers:
        listener.now += 1
        listener.call(each)
    listener.now += 60
    assert listener.closed(modest, *greedy, *strangers) == [4, 5]
    late = [listener.connect() for _ in range(2)]
    for each in late:
        listener.call(each, "late")
    assert listener.closed(modest, *greedy, *late) == [1, 2]


def test_other_descriptors_are_left_alone(listener: Listener) -> None:
    elsewhere = Listener("127.0.0.1")
    with elsewhere.opened:
        others = [elsewhere.connect() for _ in range(2 * MAX)]
        before = len(os.listdir("/dev/fd"))
        assert listener.closed(*others) == []
        assert len(os.listdir("/dev/fd")) == before


def test_files_are_not_taken_for_connections_each_time_anew(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked: list[int] = []
    make_room = listener.connections.make_room

    def counted() -> int:
        looked.append(make_room())
        return looked[-1]

    monkeypatch.setattr(listener.connections, "make_room", counted)
    with ExitStack() as opened:
        for number in range(2 * MAX):
            opened.enter_context((tmp_path / str(number)).open("w"))
        for _ in range(10):
            listener.connections.look()
    assert looked == [0]
    flood = [listener.connect() for _ in range(3 * MAX)]  # more than files were closed
    listener.connections.look()
    assert looked == [0, 3 * MAX]
    assert any(map(is_closed, flood))


def test_locks_on_files_stay(listener: Listener, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert listener.closed(*(listener.connect() for _ in range(MAX + 1)))
        with multiprocessing.get_context("spawn").Pool(1) as another:
            assert not another.apply(may_lock, (path,))


def may_lock(path: Path) -> bool:
    with path.open("w") as file, suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@pytest.mark.parametrize("lasting", [0, 3])
def test_what_is_known_of_connections_that_have_ended_is_bounded(listener: Listener, lasting: int) -> None:
    for port in range(1000):
        listener.connections.began(f"ipv4:10.0.0.1:{port}", port)
        if port >= lasting:
            listener.connections.ended(f"ipv4:10.0.0.1:{port}", port)
    assert len(listener.connections._used) <= 2 * MAX
    for port in range(lasting):
        assert listener.connections._used[f"ipv4:10.0.0.1:{port}"].in_flight == {port}


def test_a_call_ends_once_and_is_none_of_others(listener: Listener) -> None:
    callers = [listener.connect() for _ in range(MAX + 1)]
    for each in callers:
        listener.call(each, ends=False)
    peer = listener.peer(callers[1])
    listener.connections.began(peer, "another")
    for _ in range(2):  # once it is answered, and once the answer is fetched
        listener.connections.ended(peer, "another")
    assert listener.closed(*callers) == []
    listener.connections.ended(peer, callers[1])
    assert listener.closed(*callers) == [1]


def test_on_a_unix_socket_a_process_has_half(tmp_path: Path) -> None:
    listening = Listener(str(tmp_path / "socket"))
    with listening.opened:
        assert listening.closed(*(listening.connect() for _ in range(MAX + 2))) == [0, 1]


@pytest.mark.parametrize("scheme", ["unix:", "unix://"])
def test_grpcs_connections_on_a_unix_socket_are_found(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "socket"
    server, connections = grpc.server(ThreadPoolExecutor(1)), Connections(1, 9)
    server.add_insecure_port(f"{scheme}{path}")
    server.start()
    connections.listens_at(f"{scheme}{path}")
    with ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        eventually(lambda: len(list(connections._there())) == 3)
        connections.make_room()
        eventually(lambda: len(list(connections._there())) == 1)
    server.stop(None).wait()


@pytest.mark.parametrize("given", [1, 9, 90, 100, 1125])
def test_where_descriptors_are_few_there_are_fewer_connections_than_asked_for(given: int) -> None:
    assert Connections(100, given)._max == min(100, max(1, given * 8 // 9))
    assert Connections(given, with_spare(given))._max == given
