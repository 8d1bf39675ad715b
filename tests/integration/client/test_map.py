"""`map` of both clients against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convserve import (
    AsyncClient,
    Client,
    Conv2D,
    ConvserveError,
    DeadlineExceededError,
    InvalidRequestError,
    Layer,
    TooLargeError,
)
from convserve._rpc.map_schedule import MAX_CALLS
from convserve._sync import io
from convserve._sync.io import Calls
from tests.support.processes import ended_afterwards
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.waiting import eventually

RNG = np.random.default_rng(0)
LAYER = Layer(
    Conv2D(4, 3, activation="relu", data_format="channels_last"),
    RNG.normal(size=(3, 3, 3, 4)).astype("f4"),
    RNG.normal(size=4).astype("f4"),
)
SMALL = [RNG.random((1, 8, 8, 3), dtype="f4") for _ in range(60)]


def blocking(target: str, layers: Any, inputs: Any, shared_memory: bool = True, **options: Any) -> list[Any]:
    with Client(target, shared_memory=shared_memory) as client:
        return list(client.map(layers, inputs, **options))


def awaited(target: str, layers: Any, inputs: Any, shared_memory: bool = True, **options: Any) -> list[Any]:
    async def outputs() -> list[Any]:
        async with AsyncClient(target, shared_memory=shared_memory) as client:
            return [each async for each in client.map(layers, inputs, **options)]

    return asyncio.run(outputs())


BOTH = pytest.mark.parametrize("mapped", [blocking, awaited])


def senders() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("convserve-map")]


def expected(client: Client, layers: Any, x: Any) -> Any:
    return client.convolve(layers, x if x.ndim == 4 else x[np.newaxis]).output.reshape(-1)


@BOTH
@pytest.mark.parametrize("path", ["connection", "shared memory"])
def test_each_output_is_what_convolve_returns(mapped: Any, path: str, sharing_server: RunningServer) -> None:
    inputs = [
        *SMALL,
        *(RNG.random((8, 8, 3), dtype="f4") for _ in range(5)),
        *(RNG.random((7, 9, 3), dtype="f4") for _ in range(5)),
        RNG.integers(0, 256, (5, 8, 8, 3), dtype="u1"),
        RNG.random((2, 300, 300, 3), dtype="f4"),  # in pieces, or through shared memory
        RNG.random((16, 16, 3)).astype("f8"),
    ]
    chain = [LAYER, Layer(Conv2D(2, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 4, 2), "f4"))]
    found = mapped(sharing_server.target, chain, iter(inputs), shared_memory=path == "shared memory")
    assert len(found) == len(inputs)
    with Client(sharing_server.target) as client:
        for x, y in zip(inputs, found, strict=True):
            assert y.ndim == x.ndim
            np.testing.assert_allclose(y.reshape(-1), expected(client, chain, x), rtol=1e-5, atol=1e-5)


@BOTH
def test_outputs_come_with_their_index_as_they_are_completed(mapped: Any, server: RunningServer) -> None:
    found = mapped(server.target, LAYER, SMALL, as_completed=True)
    assert sorted(index for index, _ in found) == list(range(len(SMALL)))
    in_order = mapped(server.target, LAYER, SMALL)
    for index, y in found:
        np.testing.assert_allclose(y, in_order[index], rtol=1e-5, atol=1e-5)


@BOTH
def test_small_inputs_share_calls(mapped: Any, server: RunningServer) -> None:
    sizes = []

    class Counted(Client):
        def _convolve(self, request: Any, *arguments: Any) -> Any:
            sizes.append(len(request.input))
            return super()._convolve(request, *arguments)

    class CountedAwaited(AsyncClient):
        async def _convolve(self, request: Any, *arguments: Any) -> Any:
            sizes.append(len(request.input))
            return await super()._convolve(request, *arguments)

    inputs = SMALL * 10
    if mapped is blocking:
        with Counted(server.target) as client:
            found = list(client.map(LAYER, inputs))
    else:

        async def outputs() -> list[Any]:
            async with CountedAwaited(server.target) as client:
                return [each async for each in client.map(LAYER, inputs)]

        found = asyncio.run(outputs())
    assert len(found) == sum(sizes) == 600
    assert len(sizes) < 300


@BOTH
def test_a_call_that_is_refused_for_its_size_goes_item_by_item(mapped: Any) -> None:
    # A call of one such image needs about 14 KB with the weights, one of several too much, a large image always.
    inputs = [*SMALL[:30], np.zeros((1, 64, 64, 3), "f4"), *SMALL[30:]]
    with numpy_server("--max-call-bytes", "20000") as server:
        found = mapped(server.target, LAYER, inputs, errors="return")
        assert [index for index, each in enumerate(found) if isinstance(each, Exception)] == [30]
        assert isinstance(found[30], TooLargeError)
        with pytest.raises(TooLargeError):
            mapped(server.target, LAYER, inputs)


@BOTH
def test_the_timeout_is_each_items(mapped: Any, server: RunningServer) -> None:
    # gRPC sends a timeout in whole milliseconds, at least one: small inputs are at times computed in it, these never.
    large = Layer(Conv2D(64, 7, data_format="channels_last"), np.ones((7, 7, 3, 64), "f4"), np.zeros(64, "f4"))
    found = mapped(server.target, large, [np.ones((1, 512, 512, 3), "f4")] * 3, errors="return", timeout=1e-4)
    assert [type(each) for each in found] == [DeadlineExceededError] * 3


def test_a_slow_consumer_holds_the_reading_back(client: Client) -> None:
    read = []

    def inputs() -> Iterator[Any]:
        for number in range(200):
            read.append(number)
            yield SMALL[0]

    # An item takes 768 there, 576 back and a kilobyte beside, so fifteen fit in that are computed.
    outputs = client.map(LAYER, inputs(), max_bytes=24_000)
    most = []
    for taken, _ in enumerate(outputs, start=1):
        most.append(len(read) - taken)
    assert len(read) == 200
    assert max(most) <= 16  # and one that was read to know how large it is


def test_an_asynchronous_reader_is_held_back_too(server: RunningServer) -> None:
    async def run() -> None:
        read = 0

        async def inputs() -> AsyncIterator[Any]:
            nonlocal read
            for _ in range(200):
                read += 1
                yield SMALL[0]

        async with AsyncClient(server.target) as client:
            taken = 0
            async for _ in client.map(LAYER, inputs(), max_bytes=24_000):
                taken += 1
                for _ in range(20):  # the reader could go on now, if it might
                    await asyncio.sleep(0)
                assert read - taken <= 16
        assert taken == read == 200

    asyncio.run(run())


def test_nothing_is_read_before_the_first_output_is_asked_for(client: Client) -> None:
    def inputs() -> Iterator[Any]:
        raise AssertionError("read")
        yield

    client.map(LAYER, inputs())
    with pytest.raises(InvalidRequestError, match="timeout"):
        client.map(LAYER, inputs(), timeout=-1)
    with pytest.raises(InvalidRequestError, match="layers"):
        client.map([], inputs())


def test_who_leaves_in_the_middle_leaves_no_thread(client: Client) -> None:
    def first() -> Any:
        for y in client.map(LAYER, SMALL):
            return y
        return None

    assert first().shape == (1, 6, 6, 4)
    assert not senders()

    def failing() -> None:
        for _ in client.map(LAYER, SMALL):
            raise ValueError("the consumer's own")

    with pytest.raises(ValueError, match="the consumer's own"):
        failing()
    eventually(lambda: not senders())  # as soon as nobody holds the exception


def test_calls_that_are_ended_are_not_left_to_the_garbage_collector(client: Client) -> None:
    def calls() -> int:
        return sum(type(each).__name__ == "_MultiThreadedRendezvous" for each in gc.get_objects())

    gc.collect()
    before = calls()
    gc.disable()
    try:
        for _ in range(5):
            outputs = client.map(LAYER, itertools.repeat(SMALL[0]))
            next(outputs)
            outputs.close()
        eventually(lambda: calls() <= before)
    finally:
        gc.enable()


def test_calls_under_way_end_with_the_generator() -> None:
    with (
        numpy_server() as server,
        Client(server.target, timeout=3_600) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert len(list(client.map(LAYER, SMALL))) == len(SMALL)

        def inputs() -> Iterator[Any]:
            server.process.send_signal(signal.SIGSTOP)
            yield from SMALL  # which nobody answers
            assert senders()
            raise KeyboardInterrupt

        try:
            with pytest.raises(KeyboardInterrupt):
                pool.submit(next, client.map(LAYER, inputs())).result(timeout=60)  # of the hour that a call may take
            assert not senders()
        finally:
            server.process.send_signal(signal.SIGCONT)


def test_large_calls_are_not_sent_again_after_the_generator_ended(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes in pieces, by a stream, whose end looks like a server's that is gone."""
    large = np.zeros((4, 256, 256, 3), np.float32)
    ended = threading.Event()
    begun_after: list[object] = []
    stream = io.stream

    def watched(*words: Any) -> Any:
        if ended.is_set():
            begun_after.append(words)
        return stream(*words)

    monkeypatch.setattr(io, "stream", watched)
    with Client(server.target, timeout=10, shared_memory=False) as client:
        outputs = client.map(LAYER, itertools.repeat(large))
        next(outputs)
        monkeypatch.setattr(Calls, "end", lambda self, end=Calls.end: (ended.set(), end(self)))
        outputs.close()
        assert not senders()
    assert len(begun_after) <= MAX_CALLS  # those that were just about to be made


def test_tasks_end_with_the_asynchronous_generator(server: RunningServer) -> None:
    async def run() -> None:
        async with AsyncClient(server.target) as client:
            before = asyncio.all_tasks()
            async with contextlib.aclosing(client.map(LAYER, itertools.repeat(SMALL[0]))) as outputs:
                async for _ in outputs:
                    break
                assert asyncio.all_tasks() - before
            assert asyncio.all_tasks() == before

    asyncio.run(run())


def test_a_reader_that_waits_for_something_cancelled_ends_it(server: RunningServer) -> None:
    async def inputs() -> AsyncIterator[Any]:
        yield SMALL[0]
        cancelled = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        await cancelled

    async def run() -> None:
        async with AsyncClient(server.target) as client:
            outputs = client.map(LAYER, inputs())
            assert (await anext(outputs)).shape == (1, 6, 6, 4)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(anext(outputs), 60)

    asyncio.run(run())


def test_an_asynchronous_client_that_is_closed_meanwhile_says_so(server: RunningServer) -> None:
    async def run() -> None:
        client = AsyncClient(server.target, timeout=30, shared_memory=False)
        large = np.zeros((4, 256, 256, 3), np.float32)
        outputs = client.map(LAYER, itertools.repeat(large))
        await anext(outputs)
        await client.close()
        with pytest.raises(ConvserveError, match="Expected an open client"):
            async for _ in outputs:
                pass

    asyncio.run(run())


# What a shell starts in the background ignores SIGINT, and so does what that starts.
INTERRUPTED = """
import itertools, signal, sys, numpy as np, convserve
signal.signal(signal.SIGINT, signal.default_int_handler)
with convserve.Client(sys.argv[1]) as client:
    for y in client.map(convserve.Conv2D(4, 3), itertools.repeat(np.zeros((1, 8, 8, 3), "f4"))):
        print("running", flush=True)
"""


def test_ctrl_c_ends_a_program_that_maps(server: RunningServer) -> None:
    command = [sys.executable, "-c", INTERRUPTED, server.target]
    with ended_afterwards(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT
