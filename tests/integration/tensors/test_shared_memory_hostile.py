"""Shared memory in the hands of who wants to read or break what is not theirs. The server serves on after each."""

import fcntl
import os
import random
import resource
import secrets
import socket
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from convserve.v1.convolution_service_pb2 import GetServerInfoRequest
from tests.support.processes import descriptors, maps_of_memory
from tests.support.raw.calls import conv2d, layer, raw_caller, weights
from tests.support.raw.shared_memory import SEALS, Sharer, X, check_sharing, memory, place, refused, shared_request
from tests.support.servers.server_process import numpy_server
from tests.support.waiting import eventually

LIMIT = 2**24
GOOD, REFUSED, ENDED = b"\1", b"\0", b""
LOST = (grpc.StatusCode.UNAVAILABLE, "SHARED_MEMORY_LOST")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TENSOR")


@pytest.fixture(scope="module")
def limited():
    """A server that shares little memory."""
    arguments = ("--shared-memory", "--shared-memory-bytes", str(LIMIT), "--max-message-bytes", str(2**22))
    with numpy_server(*arguments) as running:
        yield running
        assert running.stop() == 0
        assert running.log_lines == []


@pytest.fixture
def caller(limited):
    with raw_caller(limited.target) as connected:
        connected.check_service()
        yield connected
        connected.check_service()
        with Sharer.of(connected) as sharer:
            check_sharing(connected, sharer)
        eventually(lambda: not maps_of_memory(limited.process.pid))


@pytest.fixture
def sharer(caller):
    with Sharer.of(caller) as connected:
        yield connected


# What is handed over


def of_path(flags, name="file"):
    return os.open(name, flags | os.O_CLOEXEC)


def read_only(size):
    descriptor = memory(size)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    finally:
        os.close(descriptor)


def of_pipe():
    ends = os.pipe()
    os.close(ends[1])
    return ends[0]


F_SEAL_FUTURE_WRITE = 0x10
BAD_DESCRIPTORS = {
    "not sealed": partial(memory, 4096, 0),
    "may shrink": partial(memory, 4096, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL),
    "may grow": partial(memory, 4096, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL),
    "must not be written to": partial(memory, 4096, SEALS | fcntl.F_SEAL_WRITE),
    "must not be written to from now on": partial(memory, 4096, SEALS | F_SEAL_FUTURE_WRITE),
    "for reading only": partial(read_only, 4096),
    "empty": partial(memory, 0),
    "more than there may be": partial(memory, LIMIT + 1),
    "a terabyte, of which nothing is there": partial(memory, 2**40),
    "as much as a file can have": partial(memory, 2**63 - 1),
    "a file": partial(of_path, os.O_RDWR),
    "a file for reading": partial(of_path, os.O_RDONLY),
    "the name of a file": partial(of_path, os.O_PATH),
    "a folder": partial(of_path, os.O_RDONLY, "."),
    "a device": partial(of_path, os.O_RDWR, "/dev/zero"),
    "a pipe": of_pipe,
    "a socket": lambda: socket.socket().detach(),
}


@pytest.mark.parametrize("make", BAD_DESCRIPTORS.values(), ids=BAD_DESCRIPTORS)
def test_what_is_no_sealed_memory_of_some_size_is_not_taken(caller, sharer, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(bytes(4096))
    name = secrets.token_bytes(16)
    assert sharer.send(name, make()) == REFUSED
    refused(caller, shared_request(place(name)), *LOST)
    assert sharer.send(name, memory(4096)) == GOOD


@pytest.mark.parametrize("size", [1, 63, 4095, 4097, LIMIT // 2])
def test_memory_of_any_size_within_the_limit_is_taken(caller, sharer, size):
    region = sharer.share(size)
    got = refused(caller, shared_request(region.place(), shape=(1, size // 4 + 1, 1, 1)), *INVALID)
    assert f"within a region of {size}" in got[0]


def test_all_that_is_taken_counts_and_what_is_forgotten_does_not(caller, sharer):
    # Half of the limit, as all are this process'.
    half = sharer.share(LIMIT // 4)
    with Sharer.of(caller) as other:
        quarter = other.share(LIMIT // 8)
        assert other.send(secrets.token_bytes(16), memory(LIMIT // 4)) == REFUSED
        assert sharer.send(secrets.token_bytes(16), memory(LIMIT // 4)) == REFUSED
        assert sharer.send(half.name) == GOOD
        other.share(LIMIT // 4)
        assert sharer.send(half.name, os.dup(half.descriptor)) == REFUSED
        assert other.send(quarter.name) == GOOD
    eventually(lambda: sharer.send(half.name, os.dup(half.descriptor)) == GOOD)  # the other connection is ended


def test_memory_that_was_taken_cannot_be_taken_away(sharer):
    region = sharer.share(8192)
    for size in (0, 4096, 8193):
        with pytest.raises(PermissionError):
            os.ftruncate(region.descriptor, size)
    with pytest.raises(OSError, match=r"busy|permitted"):
        fcntl.fcntl(region.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


# Packets

BAD_PACKETS = {
    "nothing": (b"", 0),
    "nothing, with memory": (b"", 1),
    "a byte": (b"a", 0),
    "a short name": (bytes(15), 1),
    "a long name": (bytes(17), 1),
    "a long name without memory": (bytes(17), 0),
    "64 KiB": (bytes(65_536), 1),
    "two descriptors": (bytes(16), 2),
    "200 descriptors": (bytes(16), 200),
}


@pytest.mark.parametrize(("packet", "number"), BAD_PACKETS.values(), ids=BAD_PACKETS)
def test_a_packet_that_is_none_ends_the_connection_and_its_regions(limited, caller, sharer, packet, number):
    region = sharer.share()
    open_files = descriptors(limited.process.pid)
    assert sharer.send(packet, *(memory(4096) for _ in range(number))) == ENDED
    refused(caller, shared_request(region.place()), *LOST)
    eventually(lambda: descriptors(limited.process.pid) < open_files)


def test_random_packets_end_no_more_than_their_connection(limited, caller):
    source = random.Random(1)
    open_files = descriptors(limited.process.pid)
    for _ in range(300):
        with Sharer.of(caller) as sharer:
            for _ in range(source.randrange(1, 4)):
                sizes = (source.randrange(1, 10_000) for _ in range(source.randrange(4)))
                made = [memory(size, source.choice([0, SEALS])) for size in sizes]
                if sharer.send(source.randbytes(source.choice([0, 1, 15, 16, 16, 16, 17, 4096])), *made) == ENDED:
                    break
    eventually(lambda: descriptors(limited.process.pid) <= open_files)


def test_who_reads_no_answers_is_not_waited_for(caller, sharer):
    """The server takes its packets until there is no room for the answers, and then ends the connection."""
    sharer.socket.settimeout(0)

    def ended():
        try:
            sharer.socket.send(bytes(16))
        except BlockingIOError:
            caller.check_service()
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    eventually(ended)


def test_hundreds_of_connections(limited, caller):
    pid = limited.process.pid
    open_files = descriptors(pid)
    with ExitStack() as opened:
        regions = [opened.enter_context(Sharer.of(caller)).share() for _ in range(300)]
        for region in regions[::50]:
            region.map[:64] = X.tobytes()
            caller.stub.Convolve(shared_request(region.place(), region.place(64)), timeout=60)
            assert region.map[64:128] == (2 * X).tobytes()
        assert descriptors(pid) <= open_files + 300  # and none for a region
    eventually(lambda: descriptors(pid) <= open_files)


def test_a_server_without_free_descriptors_takes_connections_again_when_it_has_some(limited, caller):
    pid = limited.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 5, before[1]))
    try:
        with ExitStack() as first, ExitStack() as others:
            first.enter_context(Sharer.of(caller)).share()
            for _ in range(15):
                first.enter_context(Sharer.of(caller))  # the system connects them, the server accepts some
            last = others.enter_context(Sharer.of(caller))
            for _ in range(20):  # (and TensorFlow does not compute without any)
                assert caller.health.Check(HealthCheckRequest(), timeout=60).status == HealthCheckResponse.SERVING
            first.close()
            last.share()
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# Those who have no ticket


@pytest.mark.parametrize("ticket", [b"\0" * 32, b"\0" * 31, b"\0" * 16, b"\0" * 4096], ids=len)
def test_another_ticket_ends_the_connection(caller, ticket):
    info = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info
    with Sharer(f"\0{info.shared_memory_address}", ticket) as stranger:
        assert stranger.send(bytes(16), memory(4096)) == ENDED
    with Sharer(f"\0{info.shared_memory_address}", info.shared_memory_ticket[:-1] + b"\0\0") as stranger:
        assert stranger.send(bytes(16), memory(4096)) == ENDED


def test_memory_that_is_handed_over_with_the_ticket_is_not_taken(limited, caller):
    info = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info
    open_files = descriptors(limited.process.pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(f"\0{info.shared_memory_address}")
        connection.settimeout(30)
        region = memory(4096)
        socket.send_fds(connection, [info.shared_memory_ticket], [region])
        os.close(region)
        assert connection.recv(100) == GOOD
        assert not maps_of_memory(limited.process.pid)
    eventually(lambda: descriptors(limited.process.pid) <= open_files)


def test_they_make_room_for_those_who_have_one(limited, caller):
    """More of them than the server takes connections."""
    pid = limited.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    info = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info
    open_files = descriptors(pid)
    with ExitStack() as opened:
        sharer = opened.enter_context(Sharer.of(caller))
        region = sharer.share()
        for _ in range(1100):
            stranger = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            stranger.connect(f"\0{info.shared_memory_address}")
        check_sharing(caller, opened.enter_context(Sharer.of(caller)))
        assert descriptors(pid) <= open_files + min(1000, before[0] // 4)
        check_sharing(caller, sharer)
        assert sharer.send(region.name) == GOOD


def test_a_process_with_the_ticket_leaves_connections_to_others():
    with (
        numpy_server("--shared-memory", limits={resource.RLIMIT_NOFILE: 256}) as few,
        raw_caller(few.target) as caller,
        ExitStack() as opened,
    ):
        info = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info

        def is_admitted():
            connection = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(f"\0{info.shared_memory_address}")
            connection.settimeout(30)
            with suppress(ConnectionError):
                connection.send(info.shared_memory_ticket)
                return connection.recv(100) == GOOD
            return False

        assert 10 < sum(is_admitted() for _ in range(80)) < 40
        assert few.log.read_text().count("connections, and gets none of") == 1
        caller.check_service()


# Others' regions


def test_a_region_is_its_connections(caller, sharer):
    region = sharer.share()
    region.map[:64] = X.tobytes()
    with Sharer.of(caller) as thief:
        assert thief.send(region.name, memory(4096)) == REFUSED
        assert thief.send(region.name) == GOOD  # that is, it has no such region
        caller.stub.Convolve(shared_request(region.place(), region.place(64)), timeout=60)
    assert region.map[64:128] == (2 * X).tobytes()
    assert sharer.send(region.name, os.dup(region.descriptor)) == REFUSED
    assert sharer.send(region.name) == GOOD
    refused(caller, shared_request(region.place()), *LOST)
    assert sharer.send(region.name) == GOOD


def test_an_output_for_which_there_is_no_room_anywhere_is_too_large(caller, sharer):
    """Messages of this server have up to 4 MiB."""
    region = sharer.share(2**20)
    wide = layer(conv2d(filters=5), weights=weights(np.ones((1, 1, 1, 5))))
    request = shared_request(region.place(), region.place(), (1, 512, 512, 1), layers=[wide])
    refused(caller, request, INVALID[0], "TOO_LARGE")
