"""Results in an array of the caller's own, by every way that tensors travel."""

from __future__ import annotations

import functools
import os
import resource
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import convserve
from convserve import Conv2D, InvalidTensorError, Layer
from tests.support.either_client import EITHER_CLIENT
from tests.support.processes import shared_maps
from tests.support.servers.server_process import RunningServer

LAST = {"data_format": "channels_last"}
KERNEL = np.float32([[[[1, 2]]]])
DOUBLE = Layer(Conv2D(2, 1, use_bias=False, **LAST), KERNEL)
X = np.arange(3 * 8 * 9, dtype="f4").reshape(3, 8, 9, 1) % 100
EXPECTED = X * KERNEL[0]
EveryWay = Callable[[Callable[[Any], Any]], dict[str, Any]]


def test_the_same_array_takes_one_output_after_the_other(every_way: EveryWay) -> None:
    def calls(client: Any) -> None:
        layer = client.put(DOUBLE)
        out = np.full(EXPECTED.shape, np.nan, "f4")
        assert layer(X, out=out) is out
        np.testing.assert_array_equal(out, EXPECTED)
        assert client.conv2d(-X, kernel=KERNEL, out=out, **LAST) is out
        np.testing.assert_array_equal(out, -EXPECTED)
        assert client.convolve([layer, Conv2D(1, 1, **LAST)], X).output.shape == X.shape
        result = client.convolve([DOUBLE, Layer(DOUBLE.config, KERNEL.repeat(2, axis=2))], X, out=out)
        assert result.output is out
        assert result.device == "cpu:0"
        np.testing.assert_array_equal(out, 3 * EXPECTED)
        out[:] = 1  # and no further call sees it
        np.testing.assert_array_equal(layer(X), EXPECTED)
        assert (out == 1).all()

    every_way(calls)


def test_any_array_that_is_contiguous(every_way: EveryWay, tmp_path: Path) -> None:
    """Also a part of a larger one, one at an odd address, a subclass over a file, and one of another dtype."""

    def calls(client: Any) -> None:
        many = np.zeros((9, *EXPECTED.shape[1:]), "f4")
        for first in range(0, 9, 3):
            client.convolve(DOUBLE, X + first, out=many[first : first + 3])
        np.testing.assert_array_equal(many, np.concatenate([(X + first) * KERNEL[0] for first in (0, 3, 6)]))

        odd = np.zeros(EXPECTED.nbytes + 2, "u1")
        client.convolve(DOUBLE, X, out=odd[1:-1].view("f4").reshape(EXPECTED.shape))
        assert odd.tobytes() == b"\0" + EXPECTED.tobytes() + b"\0"

        mapped = np.memmap(tmp_path / "output", "f4", "w+", shape=EXPECTED.shape)
        assert client.convolve(DOUBLE, X, out=mapped).output is mapped
        assert (tmp_path / "output").read_bytes() == EXPECTED.tobytes()

        for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
            out = np.zeros(EXPECTED.shape, dtype)
            assert client.convolve(DOUBLE, X.astype("u1"), output_dtype=dtype, out=out).output is out
            np.testing.assert_array_equal(out.astype("f4"), EXPECTED)
        first = Layer(Conv2D(2, 1, use_bias=False, data_format="channels_first"), KERNEL)
        out = np.zeros((3, 2, 8, 9), "f4")
        client.convolve(first, X.transpose(0, 3, 1, 2), out=out)
        np.testing.assert_array_equal(out, EXPECTED.transpose(0, 3, 1, 2))

    every_way(calls)


def test_what_is_refused_is_not_written_to(every_way: EveryWay) -> None:
    def calls(client: Any) -> None:
        client.convolve(DOUBLE, X)
        layer = client.put(DOUBLE, name="given")
        out = np.zeros(EXPECTED.shape, "f8")
        for call in (layer, functools.partial(client.convolve, DOUBLE)):
            with pytest.raises(InvalidTensorError, match=r"^out: Expected the output's dtype float32"):
                call(X, out=out)
            assert call(X, output_dtype="float64", out=out) is not None
            out[:] = 0
        kernel = np.ones((1, 1, 3, 2), "f4")
        with pytest.raises(convserve.InvalidArgumentError, match="channels"):
            client.conv2d(X, kernel=kernel, out=out, **LAST)
        assert not out.any()

    every_way(calls)


def test_a_loop_with_the_same_array_touches_no_fresh_page(sharing_server: RunningServer) -> None:
    x, own = np.ones((2, 1, 1448, 1448, 1), "f4")

    with convserve.Client(sharing_server.target) as client:
        layer = client.put(Layer(Conv2D(1, 1, use_bias=False, **LAST), KERNEL[..., :1]))

        def faults(**options: Any) -> float:
            """Returns how many pages a call, and a look at its output, are the first to touch: the median of some."""
            counts = []
            for _ in range(7):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                layer(x, **options).max()
                counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            return statistics.median(counts[2:])

        most = faults() / 8
        for out in (own, client.empty(own.shape)):
            assert faults(out=out) < most


# Arrays from the client, into which the server itself writes

LARGE = np.arange(2 * 600 * 600, dtype="f4").reshape(2, 600, 600, 1) % 251
ONE = Layer(Conv2D(1, 1, use_bias=False, **LAST), KERNEL[..., 1:])


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, sharing_server: RunningServer) -> Iterator[Any]:
    with request.param(sharing_server.target) as connected:
        yield connected


def is_shared(client: Any, array: np.ndarray) -> bool:
    return client._tensors.sharing.memory().place_of(array) is not None


def test_an_output_that_the_server_writes_where_it_is_to_be(client: Any, sharing_server: RunningServer) -> None:
    def mine() -> set[str]:
        return shared_maps(os.getpid()) & shared_maps(sharing_server.process.pid)

    before = mine()
    memory = client.empty((5, *LARGE.shape[1:]))
    memory[...] = -1
    memory[:2] = LARGE
    assert client.convolve(ONE, memory[:2], out=memory[2:4]).output.base is not None
    np.testing.assert_array_equal(memory[:4], np.concatenate([LARGE, 2 * LARGE]))
    assert (memory[4] == -1).all()
    assert len(mine() - before) == 1
    client.convolve(ONE, memory[2:4], out=memory[:2])
    np.testing.assert_array_equal(memory[:2], 4 * LARGE)
    # From an address where nothing else would begin, it is copied there.
    odd = memory.reshape(-1)[LARGE.size + 1 :][: LARGE.size].reshape(LARGE.shape)
    assert client.convolve(ONE, LARGE, out=odd).output is odd
    np.testing.assert_array_equal(odd, 2 * LARGE)
    with pytest.raises(InvalidTensorError, match="apart from the input's"):
        client.convolve(ONE, memory[:2], out=memory[1:3])


def test_a_call_that_was_given_up_writes_to_no_memory_of_the_caller(client: Any) -> None:
    config = Conv2D(1, 7, padding="same", use_bias=False, **LAST)
    slow = client.put(Layer(config, np.ones((7, 7, 1, 1), "f4")), name="given/slow")
    x, out = client.empty((2, *LARGE.shape))
    x[...] = LARGE
    slow(x, out=out)
    expected = out.copy()
    assert is_shared(client, out)
    with pytest.raises(convserve.DeadlineExceededError):
        slow(x, out=out, timeout=0.01)
    np.testing.assert_array_equal(x, LARGE)
    assert not is_shared(client, out)
    out[...] = 7
    np.testing.assert_array_equal(slow(LARGE), expected)  # after the one that was given up
    assert (out == 7).all()
    assert slow(LARGE, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(client.convolve(ONE, out).output, 2 * expected)


def test_a_call_that_the_server_refuses_leaves_the_memory_shared(client: Any) -> None:
    out = client.empty(LARGE.shape)
    out[...] = 7
    found = client.layer(client.put(Layer(ONE.config, np.full((1, 1, 1, 1), 3.5)), name="given/gone").name)
    client.delete(found)
    with pytest.raises(convserve.LayerNotFoundError):
        found(LARGE, out=out)
    assert (out == 7).all()
    assert is_shared(client, out)
