"""Batches and warming up, as callers see them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import convserve
from tests.support.servers.server_process import RunningServer, ended, numpy_server

WARM = "filters=5 kernel_size=3 activation=relu input_shape=1x16x16x3"


@pytest.fixture(scope="module")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one computation at a time, and with layers to compute before it is ready."""
    store = str(tmp_path_factory.mktemp("store"))
    with numpy_server("--store", store) as first, convserve.Client(first.target) as client:
        client.put(convserve.Conv2D(2, 1), input_channels=1, name="stem", seed=0)
    options = (
        "--warm-up",
        WARM,
        "--warm-up",
        "layer=stem input_shape=1x8x8x1",
        "--warm-up",
        "layer=no input_shape=1x1x1x1",
    )
    with numpy_server("--store", store, *options) as running:
        yield running


@pytest.mark.parametrize(("width", "warm"), [(16, True), (17, False)])
def test_what_is_warmed_up_is_warm_at_the_first_call(warm_server: RunningServer, width: int, warm: bool) -> None:
    with convserve.Client(warm_server.target) as client:
        layer = convserve.Conv2D(5, 3, activation="relu")
        assert client.convolve(layer, np.ones((1, 16, width, 3), "f4")).warm is warm
        assert client.convolve(client.layer("stem"), np.ones((1, 8, width - 8, 1), "f4")).warm is warm
    assert "'no', which leads nowhere" in Path(warm_server.log).read_text()


@pytest.mark.parametrize("text", ["filters=8", "filters=8 kernel_size=9 input_shape=1x4x4x3"])
def test_a_layer_that_cannot_be_warmed_up_ends_the_server_with_one_line(text: str) -> None:
    status, out, error = ended("--listen", "127.0.0.1:0", "--warm-up", text)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: --warm-up (CONVSERVE_WARM_UP): ")


def test_callers_at_once_get_their_own_rows_and_losses(warm_server: RunningServer) -> None:
    kernel = np.random.default_rng(0).integers(-3, 4, (1, 1, 4, 6)).astype("f4")
    start, callers = threading.Barrier(8), range(8)
    batched: list[int] = []
    with convserve.Client(warm_server.target) as client:
        config = convserve.Conv2D(6, 1, use_bias=False, kernel_regularizer="l2")
        layer = client.put(config, kernel=kernel)

        def call(number: int) -> None:
            random = np.random.default_rng(number)
            start.wait(60)
            for turn in range(40):
                x = random.integers(-3, 4, (1 + number % 3, 20, 20, 4)).astype("f4")
                alone = turn % 4 == 0
                found = client.convolve(layer, x, batching=not alone)
                np.testing.assert_array_equal(found.output, np.einsum("bhwc,cf->bhwf", x, kernel[0, 0]))
                assert found.losses[0].kernel == pytest.approx(0.01 * np.square(kernel).sum())
                assert found.batch_size == len(x) if alone else found.batch_size >= len(x)
                batched.append(found.batch_size > len(x))

        with ThreadPoolExecutor(len(callers)) as pool:
            list(pool.map(call, callers))
    print(f"\n{sum(batched)} of {len(batched)} calls were computed together with others")
