"""Results in an array of the caller's own, by every way that tensors travel."""

from __future__ import annotations

import functools
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import convserve
from convserve import Conv2D, InvalidTensorError, Layer
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.server_process import RunningServer
from tests.support.tensor_paths import by_every_way

LAST = {"data_format": "channels_last"}
KERNEL = np.float32([[[[1, 2]]]])
DOUBLE = Layer(Conv2D(2, 1, use_bias=False, **LAST), KERNEL)
X = np.arange(3 * 8 * 9, dtype="f4").reshape(3, 8, 9, 1) % 100
EXPECTED = X * KERNEL[0]
EveryWay = Callable[[Callable[[Any], Any]], dict[str, Any]]


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def every_way(request: pytest.FixtureRequest, sharing_server: RunningServer) -> EveryWay:
    return functools.partial(by_every_way, request.param, sharing_server.target)


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
    x, out = np.ones((2, 1, 2048, 2048, 1), "f4")

    with convserve.Client(sharing_server.target) as client:
        layer = client.put(Layer(Conv2D(1, 1, use_bias=False, **LAST), KERNEL[..., :1]))

        def faults(**options: Any) -> float:
            """Returns how many pages a call, and a look at its output, are the first to touch: the median of some."""
            counts = []
            for _ in range(9):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                layer(x, **options).max()
                counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            return statistics.median(counts[2:])

        assert faults(out=out) < faults() / 8
