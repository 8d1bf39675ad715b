"""Both clients against a real server: the same bodies run blocking and awaited."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.server_process import RunningServer

X = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def any_client(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Any]:
    with request.param(server.target) as connected:
        yield connected


def test_conv2d_takes_keras_arguments(any_client: Any) -> None:
    y = any_client.conv2d(X, 4, 3, strides=2, padding="same", activation="relu", seed=0)
    assert y.shape == (2, 5, 5, 4)
    assert y.dtype == np.float32
    assert y.min() == 0
    np.testing.assert_array_equal(
        y, any_client.conv2d(X, filters=4, kernel_size=3, strides=2, padding="same", activation="relu", seed=0)
    )


def test_second_call_of_a_shape_is_warm(any_client: Any) -> None:
    # Warm is what any earlier call made so, hence a number that no other call uses.
    config = Conv2D(5, (2, 3), activation=convserve.activations.ELU(alpha=random.random()))
    any_client.convolve(config, X)
    assert any_client.convolve(config.replace(name="other", kernel_initializer="ones"), X).warm
    assert not any_client.convolve(config, X[:, :8]).warm


def test_plan_says_why_a_call_would_be_refused(any_client: Any) -> None:
    planned = any_client.plan(Conv2D(64, 3), (1000, 600, 600, 3))
    assert planned.admitted is False
    assert "--max-call-bytes" in planned.refusal
    assert planned.output_shape == (1000, 598, 598, 64)
    assert any_client.plan(Conv2D(64, 3), (16, 600, 600, 3)).admitted  # though 1.5 GB of output are many messages


def test_plan_uses_the_layers_own_input_shape(any_client: Any) -> None:
    assert any_client.plan(Conv2D(2, 3, input_shape=(8, 8, 1))).output_shape == (1, 6, 6, 2)


def test_info_says_what_the_server_is(any_client: Any) -> None:
    info = any_client.info()
    assert info.version == convserve.__version__
    assert info.tensorflow_version.startswith("2.")
    assert info.devices[0].name == "cpu:0"
    assert info.tf32 is False
    assert set(info.output_dtypes) < set(info.input_dtypes)
    assert info.max_layers_per_call > 1
    assert info.max_call_flops == 10**13


def test_a_call_may_take_as_long_as_it_takes(any_client: Any) -> None:
    for timeout in (float("inf"), 1e12, 10**400):
        assert any_client.conv2d(X, 4, 3, seed=0, timeout=timeout).shape == (2, 7, 7, 4)
        large = any_client.conv2d(np.ones((1, 512, 512, 3), np.float32), 4, 1, seed=0, timeout=timeout)
        assert large.shape == (1, 512, 512, 4)


def test_calls_may_run_at_once(server: RunningServer) -> None:
    async def many() -> list[Any]:
        async with convserve.AsyncClient(server.target) as client:
            return await asyncio.gather(
                *(client.conv2d(X * i, kernel=np.ones((1, 1, 3, 1), np.float32)) for i in range(20))
            )

    for i, y in enumerate(asyncio.run(many())):
        np.testing.assert_allclose(y[..., 0], (X * i).sum(axis=-1), rtol=1e-4, atol=1e-5)
