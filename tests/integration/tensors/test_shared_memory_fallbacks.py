"""Where shared memory is to be had and where not, and that calls are answered all the same, with a word in the log.

By a Unix socket and by the network, without room for it, and on a system that has none.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from convserve._rpc.retries import Deadline
from convserve.tensors.shared_memory import SUFFIX
from convserve.v1.convolution_service_pb2 import GetServerInfoRequest
from convserve.v1.server_info_pb2 import ServerInfo
from tests.support.either_client import EITHER_CLIENT
from tests.support.processes import shared_maps
from tests.support.raw.calls import raw_caller, tensor
from tests.support.raw.shared_memory import Sharer, check_sharing, refused, shared_request
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.tensor_paths import Taken
from tests.support.waiting import eventually

MIB = 2**20
DOUBLE = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 1), 2.0))
BOTH = pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sockets")


@pytest.fixture(scope="module")
def everywhere(folder: Path) -> Iterator[RunningServer]:
    """A server with 16 MiB to share, a caller half of them, everywhere: one Unix socket's path is almost too long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_behind:
        left_behind.bind(f"{folder}/s{SUFFIX}")  # by a server that was killed
    long = f"{folder}/" + "s" * (105 - len(f"{folder}/"))
    listen = ("--listen", "0.0.0.0:0", "--listen", f"unix://{folder}/s", "--listen", f"unix://{long}")
    with numpy_server(*listen, "--shared-memory", "--shared-memory-bytes", str(16 * MIB)) as running:
        yield running
        assert running.stop() == 0
        said = running.log.read_text()
        assert len([line for line in said.splitlines() if " WARNING " in line]) == 2
        assert "is open to the network" in said
        assert f"{long}{SUFFIX}: no memory is shared beside this socket: AF_UNIX path too long" in said
    assert not list(folder.glob(f"*{SUFFIX}"))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """Returns the reasons why tensors went through the connection."""
    caplog.set_level(logging.DEBUG, "convserve")

    def reasons() -> list[str]:
        before = "tensors go through the connection, not through shared memory: "
        return [each.removeprefix(before) for each in caplog.messages if each.startswith(before)]

    return reasons


def check(client: Any, x: Any = None) -> None:
    x = np.random.default_rng(0).integers(-99, 99, (2, 600, 600, 1)).astype("f4") if x is None else x
    np.testing.assert_array_equal(client.convolve(DOUBLE, x).output, 2 * x)


def port(server: RunningServer) -> str:
    return server.target.rpartition(":")[2]


# Where it is to be had


@BOTH
@pytest.mark.parametrize("form", ["unix:{}/s", "unix://{}/s"])
def test_a_unix_socket(everywhere: RunningServer, folder: Path, taken: Taken, make_client: Any, form: str) -> None:
    with make_client(form.format(folder)) as client:
        check(client)
        x = client.empty((1, 600, 600, 1))
        x[:] = 1
        check(client, x)
    assert taken.copied_inputs == [True, False]
    assert taken.kept_outputs == [True, True]


def test_a_socket_beside_it_for_callers_in_another_network_namespace(everywhere: RunningServer, folder: Path) -> None:
    with raw_caller(f"unix://{folder}/s") as caller:
        info = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info
        with Sharer(f"{folder}/s{SUFFIX}", info.shared_memory_ticket) as sharer:
            check_sharing(caller, sharer)


def test_a_unix_socket_with_a_long_path(everywhere: RunningServer, folder: Path, taken: Taken) -> None:
    (path,) = folder.glob("sss*")
    with convserve.Client(f"unix://{path}") as client:
        check(client)
    assert taken.kept_outputs == [True]


@BOTH
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_loopback(everywhere: RunningServer, taken: Taken, make_client: Any, host: str) -> None:
    with make_client(f"{host}:{port(everywhere)}") as client:
        check(client)
    assert taken.kept_outputs == [True]


# Where it is not


@pytest.fixture
def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def test_a_caller_by_the_network_gets_no_address_and_no_memory(everywhere: RunningServer, own_address: str) -> None:
    with raw_caller(f"127.0.0.1:{port(everywhere)}") as near, Sharer.of(near) as sharer:
        region = sharer.share()
        with raw_caller(f"{own_address}:{port(everywhere)}") as far:
            info = far.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info
            assert info.shared_memory_address == ""
            lost = (grpc.StatusCode.UNAVAILABLE, "SHARED_MEMORY_LOST")
            refused(far, shared_request(region.place()), *lost)
            refused(far, shared_request(None, region.place(), input=tensor(np.ones((1, 4, 4, 1)))), *lost)
            far.check_service()
        near.stub.Convolve(shared_request(region.place(), region.place(64)), timeout=60)


@BOTH
def test_a_client_by_the_network_does_not_ask(
    everywhere: RunningServer, own_address: str, taken: Taken, said: Any, make_client: Any
) -> None:
    with make_client(f"{own_address}:{port(everywhere)}") as client:
        check(client)
        x = client.empty((1, 600, 600, 1))
        x[:] = 1
        check(client, x)
    assert taken.copied_inputs == []
    assert said() == []


@BOTH
def test_a_server_that_shares_none_is_asked_once(
    server: RunningServer, taken: Taken, said: Any, make_client: Any
) -> None:
    with make_client(server.target) as client:
        for _ in range(3):
            check(client)
        assert client.empty((1, 2, 2, 1)).shape == (1, 2, 2, 1)
    assert taken.copied_inputs == []
    assert said() == ["the server shares no memory"]


@BOTH
def test_a_system_without_it(
    everywhere: RunningServer, monkeypatch: pytest.MonkeyPatch, taken: Taken, said: Any, make_client: Any
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with make_client(f"127.0.0.1:{port(everywhere)}") as client:
        check(client)
        check(client)
    assert taken.copied_inputs == []
    assert said() == ["this system has no memfd_create"]


def test_a_socket_that_cannot_be_reached(everywhere: RunningServer, taken: Taken, said: Any) -> None:
    with convserve.Client(f"127.0.0.1:{port(everywhere)}") as client:
        sharing = client._connected()._tensors.sharing
        assert sharing.is_to_connect()
        sharing.connect(ServerInfo(shared_memory_address="convserve-of-another-machine"), Deadline(60))
        check(client)
        check(client)
    assert taken.copied_inputs == []
    assert said() == ["[Errno 111] Connection refused"]


# Where there is no room


@BOTH
def test_a_call_for_which_there_is_no_room(
    everywhere: RunningServer, taken: Taken, said: Any, make_client: Any
) -> None:
    with make_client(f"127.0.0.1:{port(everywhere)}") as client:
        check(client, np.ones((3, 1000, 1000, 1), "f4"))  # 12 MB
        assert said() == ["the server does not take the region"]
        check(client, np.ones((1, 1000, 1500, 1), "f4"))  # the input has room, the output not
        check(client, np.ones((1, 600, 600, 1), "f4"))
    assert len(taken.items) == len(said()) == 2
    assert taken.kept_outputs == [True]
    eventually(lambda: not shared_maps(os.getpid()) & shared_maps(everywhere.process.pid))


def test_what_the_client_does_not_use_makes_room(everywhere: RunningServer, taken: Taken, said: Any) -> None:
    with convserve.Client(f"127.0.0.1:{port(everywhere)}") as client:
        check(client, np.ones((1, 900, 900, 1), "f4"))  # 3.2 MB each way
        gc.collect()
        upwards = Layer(Conv2D(16, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 1, 16)))
        assert client.convolve(upwards, np.ones((1, 300, 300, 1), "f4")).output.sum() == 300 * 300 * 16  # 5.8 MB
    assert said() == []
    assert taken.kept_outputs == [True, True]


def test_a_huge_call_now_and_then_leaves_the_others_their_memory(everywhere: RunningServer) -> None:
    with convserve.Client(f"127.0.0.1:{port(everywhere)}") as client:
        check(client)
        memory = client._tensors.sharing.memory()
        small = [memory.region(2**17) for _ in range(2)]
        huge = memory.region(MIB)  # too large to be used for a small one
        memory._max_unused_bytes = sum(each.size for each in (*small, huge)) - 1
        for each in (*small, huge):
            memory.give_back(each)
        assert {memory.region(2**17).name for _ in small} == {each.name for each in small}


def test_what_is_dropped_is_forgotten_by_the_server_too(everywhere: RunningServer) -> None:
    server = everywhere.process.pid
    with convserve.Client(f"127.0.0.1:{port(everywhere)}") as client:
        check(client)
        memory = client._tensors.sharing.memory()
        for _ in range(20):
            memory.region(3 * MIB)  # as a call does that is cancelled before it is made
        assert len(shared_maps(server)) <= 4


def test_calls_that_fail_or_are_cancelled_keep_nothing(everywhere: RunningServer, said: Any) -> None:
    slow = Layer(Conv2D(8, 31, use_bias=False, padding="same", data_format="channels_last"), np.ones((31, 31, 1, 8)))
    back = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 8, 1)))
    x = np.ones((1, 500, 500, 1), "f4")

    async def calls() -> None:
        async with convserve.AsyncClient(f"127.0.0.1:{port(everywhere)}") as client:
            await client.convolve(DOUBLE, x)
            for number in range(8):
                with suppress(convserve.DeadlineExceededError, TimeoutError):
                    if number % 2:
                        await client.convolve([slow, back], x, timeout=0.02)
                    else:
                        await asyncio.wait_for(client.convolve([slow, back], x), 0.02)
            output = (await client.convolve(DOUBLE, x)).output
            assert (output == 2).all()
            assert len(shared_maps(everywhere.process.pid) & shared_maps(os.getpid())) <= 3

    asyncio.run(calls())
    assert said() == []


def test_asking_for_shared_memory_takes_of_the_calls_own_time(
    everywhere: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, given = 0.0, []
    with convserve.Client(f"127.0.0.1:{port(everywhere)}") as client:
        tensors = client._connected()._tensors
        connect, convolve = tensors.connect, tensors._convolve

        def slowly(*arguments: Any) -> None:
            nonlocal now
            connect(*arguments)
            now = 50.0

        def noted(data: bytes, timeout: float) -> Any:
            given.append(timeout)
            return convolve(data, timeout=60)

        monkeypatch.setattr(tensors, "connect", slowly)
        monkeypatch.setattr(tensors, "_convolve", noted)
        client.convolve(DOUBLE, np.ones((2, 600, 600, 1), "f4"), timeout=Deadline(60, lambda: now))  # type: ignore[arg-type]
    assert given == [10.0]
