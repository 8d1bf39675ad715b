"""POSIX shared memory that callers register: whose it must be, where it ends, what becomes of it."""

import os
import secrets
import socket
import stat
from pathlib import Path

import numpy as np
import pytest

from convserve import InvalidRequestError, OverloadedError
from convserve_server.open_inference import system_memory
from convserve_server.open_inference.infer_tensors import Place
from convserve_server.open_inference.system_memory import SystemMemory, user_of

FOLDER = Path("/dev/shm")  # noqa: S108
ME = os.geteuid()
X = np.arange(16, dtype="f4")


@pytest.fixture
def key():
    """The name of 4096 bytes of shared memory."""
    name = f"convserve-test-{secrets.token_hex(8)}"
    (FOLDER / name).write_bytes(bytes(4096))
    yield f"/{name}"
    (FOLDER / name).unlink(missing_ok=True)


@pytest.fixture
def memory():
    return SystemMemory(2**20)


def file_of(key):
    return FOLDER / key.removeprefix("/")


def place(offset=0, size=X.nbytes):
    return Place("a", offset, size, "inputs.x")


def descriptors_of(path):
    """Returns how often this process has a file open."""
    listed = (each for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return sum(os.readlink(each).removesuffix(" (deleted)") == str(path) for each in list(listed))


def registered(memory, key, size=4096, offset=0, name="a", owner=""):
    memory.register(owner, ME, name, key, offset, size)
    return memory.region(owner, name, "name")


def test_a_region_is_read_and_written_where_it_begins(memory, key):
    region = registered(memory, key, size=2000, offset=1000)
    file_of(key).write_bytes(bytes(1064) + X.tobytes() + bytes(4096 - 1064 - X.nbytes))
    found = np.empty_like(X)
    region.read(place(64), found)
    np.testing.assert_array_equal(found, X)
    region.write(place(1936), 2 * X)
    assert file_of(key).read_bytes()[2936:3000] == (2 * X).tobytes()
    assert file_of(key).read_bytes()[3000:] == bytes(1096)


@pytest.mark.parametrize(("offset", "size"), [(4096, 64), (4033, 64), (0, 4097), (2**63, 64), (0, 2**63)])
def test_a_place_beyond_the_region_is_refused(memory, key, offset, size):
    region = registered(memory, key)
    for do in (region.read, region.write):
        with pytest.raises(InvalidRequestError, match=r"inputs.x: Expected .* within the region 'a' of 4096"):
            do(place(offset, size), X.copy())


def test_memory_that_is_truncated_is_an_error_and_never_grows_again(memory, key):
    region = registered(memory, key)
    os.truncate(file_of(key), 32)
    for do in (region.read, region.write):
        with pytest.raises(InvalidRequestError, match="of at least 64 bytes"):
            do(place(), X.copy())
    assert file_of(key).stat().st_size == 32


def test_a_region_outlives_its_name_and_is_closed_with_the_last_call(memory, key):
    region = registered(memory, key)
    file_of(key).unlink()
    memory.unregister("", "a")
    region.write(place(), X)
    found = np.empty_like(X)
    region.read(place(), found)
    np.testing.assert_array_equal(found, X)
    assert descriptors_of(file_of(key)) == 1
    del region
    assert descriptors_of(file_of(key)) == 0


WRONG_KEYS = [
    "", "/", ".", "..", "/..", "//a", "a/b", "/../etc/passwd", "../etc/passwd", "/etc/passwd", "a\0b", "a" * 251,
    "/convserve-test-is-not-there", "convserve-test-is-not-there",
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_KEYS)
def test_only_names_of_shared_memory_are_looked_up(memory, wrong):
    with pytest.raises(InvalidRequestError, match="key: Expected "):
        registered(memory, wrong)
    assert memory.regions("") == []


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "another user's"])
def test_only_a_regular_file_of_the_callers_user_is_taken(memory, key, kind):
    path = file_of(key)
    path.unlink()
    other = FOLDER / f"{path.name}-other"
    if kind == "link":
        other.write_bytes(bytes(4096))
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes(bytes(4096))
    try:
        with pytest.raises(InvalidRequestError, match="belongs to the caller's user") as refused:
            memory.register("", ME + (kind == "another user's"), "a", key, 0, 4096)
        assert key in str(refused.value)
        assert descriptors_of(path) == 0
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        other.unlink(missing_ok=True)
        path.touch()
        assert stat.S_ISREG(path.stat().st_mode)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"size": 0}, "byte_size"),
        ({"size": 4097}, "byte_size"),
        ({"size": 4096, "offset": 1}, "byte_size"),
        ({"size": 2**64 - 1, "offset": 2**64 - 1}, "byte_size"),
        ({"name": ""}, "name"),
        ({"name": "a" * 1001}, "name"),
    ],
)
def test_what_does_not_fit_is_refused(memory, key, fields, field):
    with pytest.raises(InvalidRequestError, match=rf"^{field}: Expected .* Received "):
        registered(memory, key, **fields)


def test_a_name_is_taken_once_for_each_owner(memory, key):
    registered(memory, key)
    with pytest.raises(InvalidRequestError, match="name: Expected one that is not registered yet"):
        registered(memory, key)
    registered(memory, key, owner="token:a")
    assert [each.name for each in memory.regions("token:a")] == ["a"]
    for owner in ("token:b", "token:"):
        with pytest.raises(InvalidRequestError):
            memory.region(owner, "a", "name")
    memory.unregister("token:b", "")
    memory.unregister("token:a", "")
    assert memory.regions("token:a") == []
    assert [each.key for each in memory.regions("", "a")] == [key]
    memory.unregister("", "none")
    memory.unregister("", "a")
    with pytest.raises(InvalidRequestError):
        memory.regions("", "a")


def test_bytes_are_bounded_and_what_was_left_behind_makes_room(key):
    memory = SystemMemory(8192)
    registered(memory, key, name="a")
    registered(memory, key, name="b")
    with pytest.raises(OverloadedError, match="--shared-memory-bytes"):
        registered(memory, key, name="c")
    file_of(key).unlink()
    file_of(key).write_bytes(bytes(4096))
    registered(memory, key, name="c")
    assert [each.name for each in memory.regions("")] == ["c"]


def test_a_caller_has_half_of_the_regions_that_are_left(key):
    memory = SystemMemory(2**30, 16)

    def taken_by(caller):
        for number in range(16):
            try:
                memory.register("user", ME, f"{caller} {number}", key, 0, 4096, caller)
            except OverloadedError:
                return number
        return 16

    assert [taken_by(caller) for caller in ("greedy", "second", "third")] == [8, 4, 2]


def test_where_there_is_no_room_the_regions_of_callers_that_are_gone_make_some(key, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(system_memory.time, "monotonic", lambda: now[0])
    memory = SystemMemory(2**30, 4)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as there:
        peers = [f"ipv4:127.0.0.1:{there.getsockname()[1]}", "ipv4:127.0.0.1:1"]
        for number, peer in enumerate((*peers, *peers)):
            memory.register("user", ME, f"{number}", key, 0, 4096, "", peer)
        now[0] += 1  # else the connection might be newer than what is known of connections
        memory.register("user", ME, "new", key, 0, 4096, "caller")
        assert [each.name for each in memory.regions("user")] == ["0", "2", "new"]


def test_a_unix_sockets_peer_is_the_servers_user():
    assert user_of("unix:") == ME


def test_a_peer_that_is_not_connected_is_nobody():
    assert user_of("ipv4:127.0.0.1:1") == -1
    assert user_of("ipv6:%5B::1%5D:1") == -1


def test_of_a_connection_that_has_just_come_no_region_is_abandoned(key, monkeypatch):
    connections = []  # a port that is free again may be another program's at once
    monkeypatch.setattr(system_memory, "_connections", lambda: iter(connections))
    monkeypatch.setattr(system_memory.time, "monotonic", lambda: 100.9)
    system_memory._established.cache_clear()
    system_memory._established(100)  # before there is the connection
    memory = SystemMemory(4096)
    connections += [(row, ME) for row in system_memory._rows_of("ipv4:127.0.0.1:40000")]
    memory.register("", ME, "a", key, 0, 4096, caller="", peer="ipv4:127.0.0.1:40000")
    for now in (100.9, 101.5):
        monkeypatch.setattr(system_memory.time, "monotonic", lambda now=now: now)
        with pytest.raises(OverloadedError):
            memory.register("other", ME, "b", key, 0, 2048)
        assert memory.region("", "a", "name")
    connections.clear()
    monkeypatch.setattr(system_memory.time, "monotonic", lambda: 102.0)
    memory.register("other", ME, "b", key, 0, 2048)
    with pytest.raises(InvalidRequestError):
        memory.region("", "a", "name")
