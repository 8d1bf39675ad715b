"""Shared memory as callers meet it: what is not sent, what may be held and written to, and what stays behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.either_client import EITHER_CLIENT
from tests.support.processes import descriptors, shared_maps
from tests.support.servers.counting_proxy import counting_proxy
from tests.support.servers.server_process import RunningServer
from tests.support.tensor_paths import Taken
from tests.support.waiting import eventually

LAST = {"data_format": "channels_last"}
DOUBLE = Layer(Conv2D(1, 1, use_bias=False, **LAST), np.full((1, 1, 1, 1), 2.0))
SMALL = 30_000  # bytes of messages without tensors
SHAPE = (2, 600, 600, 1)  # 2.9 MB, an output that stays where it is


def image(number: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(number).integers(-99, 99, shape).astype("f4")


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, sharing_server: RunningServer) -> Iterator[Any]:
    with request.param(sharing_server.target) as connected:
        yield connected


# What is sent


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_no_tensor_crosses_the_connection(sharing_server: RunningServer, make_client: Any) -> None:
    with counting_proxy(sharing_server.target) as proxy, make_client(proxy.target) as client:
        for number in range(5):
            x = image(number)
            np.testing.assert_array_equal(client.convolve(DOUBLE, x).output, 2 * x)
        assert proxy.sent_bytes < SMALL
        assert proxy.received_bytes < SMALL


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_it_does_if_that_is_asked_for(sharing_server: RunningServer, make_client: Any) -> None:
    with counting_proxy(sharing_server.target) as proxy, make_client(proxy.target, shared_memory=False) as client:
        np.testing.assert_array_equal(client.convolve(DOUBLE, image(0)).output, 2 * image(0))
        assert min(proxy.sent_bytes, proxy.received_bytes) > image(0).nbytes


# Arrays from the client

PARTS = {
    "all of it": (lambda x: x, False),
    "a sample": (lambda x: x[1:2], False),
    "samples": (lambda x: x[1:], False),
    "rows of a sample": (lambda x: x[:1, 16:], False),
    "another shape": (lambda x: x.reshape(4, 300, 600, 1), False),
    "a part of a part": (lambda x: x[1:][:, 8:][:, 8:, :, :], False),
    "from an address where nothing else would begin": (lambda x: x.reshape(-1)[1:-599].reshape(1, 1199, 600, 1), True),
    "not contiguous": (lambda x: x[:, :, 5:], True),
    "backwards": (lambda x: x[::-1], True),
    "another dtype": (lambda x: x.astype("f2"), True),
}


@pytest.mark.parametrize(("part", "copied"), PARTS.values(), ids=PARTS)
def test_what_lies_in_the_clients_memory_is_not_copied(client: Any, taken: Taken, part: Any, copied: bool) -> None:
    x = client.empty(SHAPE)
    assert (x.shape, x.dtype, type(x)) == (SHAPE, np.float32, np.ndarray)
    x[:] = image(1)
    np.testing.assert_array_equal(client.convolve(DOUBLE, part(x)).output, 2 * part(image(1)))
    assert taken.copied_inputs == [copied]
    np.testing.assert_array_equal(x, image(1))
    x *= 2
    np.testing.assert_array_equal(client.convolve(DOUBLE, part(x)).output, 4 * part(image(1)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "uint8", "int8"])
def test_such_arrays_have_any_dtype_of_an_input(client: Any, taken: Taken, dtype: str) -> None:
    x = client.empty((1, 300, 300, 1), dtype)
    x[:] = np.arange(300).reshape(1, 1, 300, 1) % 100
    np.testing.assert_array_equal(client.convolve(DOUBLE, x).output[0, 7, :, 0], np.arange(300) % 100 * 2)
    assert taken.copied_inputs == [False]


def test_such_an_array_outlives_its_client(sharing_server: RunningServer, taken: Taken) -> None:
    with convserve.Client(sharing_server.target) as first:
        x = first.empty(SHAPE)
        x[:] = image(2)
        row = x[1, 5]
        first.convolve(DOUBLE, x)
    del first
    gc.collect()
    with convserve.Client(sharing_server.target) as second:
        others = [second.empty(SHAPE) for _ in range(3)]
        for each in others:
            each[:] = 7
        np.testing.assert_array_equal(x, image(2))
        np.testing.assert_array_equal(second.convolve(DOUBLE, x).output, 2 * image(2))
    assert taken.copied_inputs == [False, True]
    del x
    gc.collect()
    np.testing.assert_array_equal(row, image(2)[1, 5])


def test_such_arrays_do_not_share_memory_with_each_other_or_with_results(client: Any) -> None:
    arrays = []
    for number in range(12):
        if number % 3 == 2:
            arrays[number // 2 : number // 2 + 1] = []  # its memory may be used again
        x = client.empty(SHAPE)
        x[:] = number
        arrays += [x, client.convolve(DOUBLE, x).output]
    for number, each in enumerate(arrays):
        assert len(np.unique(each)) == 1
        each[:] = 1000 + number
    assert [each.flat[-1] for each in arrays] == [1000 + number for number in range(len(arrays))]


# Results


def test_a_result_stays_what_it_is(client: Any) -> None:
    held = [client.convolve(DOUBLE, image(number)).output for number in range(4)]
    for number in range(4, 24):
        client.convolve(DOUBLE, image(number))
    for number, each in enumerate(held):
        np.testing.assert_array_equal(each, 2 * image(number))


def test_what_is_written_to_a_result_is_seen_by_nobody_else(client: Any) -> None:
    first = client.convolve(DOUBLE, image(0)).output
    rows = first[1, 10:20]
    first[:, ::2] = np.nan
    for number in range(1, 6):
        result = client.convolve(DOUBLE, image(number)).output
        np.testing.assert_array_equal(result, 2 * image(number))
        result[:] = -number  # and the memory is used again for the next one
    assert np.isnan(first[:, ::2]).all()
    del first
    gc.collect()
    np.testing.assert_array_equal(client.convolve(DOUBLE, image(9)).output, 2 * image(9))
    np.testing.assert_array_equal(rows[1::2], 2 * image(0)[1, 11:20:2])


def test_threads_share_a_client(sharing_server: RunningServer) -> None:
    def work(number: int, client: convserve.Client) -> None:
        source = np.random.default_rng(number)
        held = []
        for call in range(15):
            shape = (int(source.integers(1, 4)), int(source.integers(100, 700)), 600, 1)
            x = client.empty(shape) if call % 3 == 0 else np.empty(shape, "f4")
            x[:] = source.integers(-99, 99, shape)
            output = client.convolve(DOUBLE, x).output
            held = [*held[-2:], (output, 2 * np.array(x))]
            if call % 4 == 0:
                output[0] = held[-1][1][0] = number
            for each, expected in held:
                np.testing.assert_array_equal(each, expected)

    with convserve.Client(sharing_server.target) as client, ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(work, number, client) for number in range(8)]:
            each.result()


# What stays behind


def mine(server: RunningServer) -> set[str]:
    """Returns what this process and a server share."""
    return shared_maps(os.getpid()) & shared_maps(server.process.pid)


def test_memory_is_used_again(client: Any, sharing_server: RunningServer) -> None:
    x = image(0)
    client.convolve(DOUBLE, x)
    before = mine(sharing_server)
    for number in range(60):
        client.convolve(DOUBLE, x[:, number % 7 :])
    assert len(mine(sharing_server) - before) <= 2


def test_neither_end_needs_a_file_for_each_result(client: Any, sharing_server: RunningServer) -> None:
    """A process may have 1024 open files on many systems, and a server has those of all callers."""
    server = sharing_server.process.pid
    x = image(0, (1, 512, 512, 1))
    client.convolve(DOUBLE, x)
    before = descriptors(server), descriptors(os.getpid())
    held = [client.convolve(DOUBLE, x).output for _ in range(60)]
    assert descriptors(server) <= before[0] + 10
    assert descriptors(os.getpid()) <= before[1] + 10
    assert all((each == held[0]).all() for each in held)


def test_memory_is_given_back_when_the_client_closes(sharing_server: RunningServer) -> None:
    before = mine(sharing_server)
    with convserve.Client(sharing_server.target) as client:
        result = client.convolve(DOUBLE, image(0)).output
        x = client.empty(SHAPE)
        shared = mine(sharing_server) - before
        assert len(shared) == 2
    eventually(lambda: not shared & shared_maps(sharing_server.process.pid))
    x[:] = result
    np.testing.assert_array_equal(x, 2 * image(0))


@pytest.mark.filterwarnings("error")
def test_a_client_that_is_dropped_without_being_closed_keeps_nothing(sharing_server: RunningServer) -> None:
    before = mine(sharing_server)
    client = convserve.Client(sharing_server.target)
    held = client.convolve(DOUBLE, image(0)).output
    shared = mine(sharing_server) - before
    assert shared
    del client
    gc.collect()
    eventually(lambda: not shared & shared_maps(sharing_server.process.pid))
    np.testing.assert_array_equal(held, 2 * image(0))


def test_a_client_may_be_closed_while_it_is_called(sharing_server: RunningServer) -> None:
    """The calls fail or are answered; afterwards nothing is shared."""
    before = mine(sharing_server)

    def calls(client: convserve.Client) -> None:
        try:
            while True:
                assert (client.convolve(DOUBLE, np.ones(SHAPE, "f4")).output == 2).all()
        except (convserve.UnavailableError, ValueError):  # gRPC says so of a channel that was closed before the call
            return

    for _ in range(5):
        client = convserve.Client(sharing_server.target, retry=convserve.RetryRule(attempts=1))
        client.convolve(DOUBLE, np.ones(SHAPE, "f4"))
        with ThreadPoolExecutor(4) as threads:
            callers = [threads.submit(calls, client) for _ in range(4)]
            client.convolve(DOUBLE, np.ones(SHAPE, "f4"))
            client.close()
        for each in callers:
            each.result()
    gc.collect()
    eventually(lambda: mine(sharing_server) <= before)
