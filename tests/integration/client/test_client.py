"""Both clients against a real server: the same bodies run blocking and awaited."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer, Losses
from tests.support.servers.server_process import RunningServer

X = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype(np.float32)


class Awaited:
    """AsyncClient with its calls awaited, so that a test body is written once."""

    def __init__(self, target: str, **arguments: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = convserve.AsyncClient(target, **arguments)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **parameters: Any) -> Any:
            async def awaited() -> Any:
                return await getattr(self._client, name)(*arguments, **parameters)

            return self._runner.run(awaited())

        return call

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


@pytest.fixture(params=[convserve.Client, Awaited], ids=["blocking", "awaited"])
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


def test_result_is_an_ordinary_array_that_may_be_written_to(any_client: Any) -> None:
    y = any_client.conv2d(X, 4, 3)
    y += 1
    assert y.flags.c_contiguous


def test_given_weights_are_computed_with(any_client: Any) -> None:
    kernel = np.zeros((1, 1, 3, 2), np.float32)
    kernel[0, 0, 0, 0], kernel[0, 0, 2, 1] = 2, -1
    y = any_client.conv2d(X, kernel=kernel, bias=np.float32([0, 10]))
    np.testing.assert_allclose(y, np.stack([2 * X[..., 0], 10 - X[..., 2]], axis=-1), rtol=1e-6)


def test_result_says_what_happened(any_client: Any) -> None:
    config = Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l1", name="stem")
    result = any_client.convolve(config, X)
    assert result.output.shape == (2, 7, 7, 4)
    assert result.device == "cpu:0"
    assert result.batch_size == 2
    assert result.timing.compute_us > 0
    assert result.timing.queue_us >= 0
    (losses,) = result.losses
    assert losses.bias is None
    assert losses.kernel > 0
    np.testing.assert_allclose(losses.activity, 0.01 * np.abs(result.output).sum() / 2, rtol=1e-5)
    (drawn,) = result.layers
    assert drawn.kernel_initializer.parameters["seed"] is not None
    assert drawn.replace(kernel_initializer=config.kernel_initializer) == config
    np.testing.assert_array_equal(any_client.convolve(drawn, X).output, result.output)


def test_second_call_of_a_shape_is_warm(any_client: Any) -> None:
    # Warm is what any earlier call made so, hence a number that no other call uses.
    config = Conv2D(5, (2, 3), activation=convserve.activations.ELU(alpha=random.random()))
    any_client.convolve(config, X)
    assert any_client.convolve(config.replace(name="other", kernel_initializer="ones"), X).warm
    assert not any_client.convolve(config, X[:, :8]).warm


def test_chain_is_the_layers_one_after_the_other(any_client: Any) -> None:
    rng = np.random.default_rng(1)
    first = Layer(
        Conv2D(4, 3, activation="relu", bias_regularizer="l1"), rng.normal(size=(3, 3, 3, 4)), rng.normal(size=4)
    )
    second = Layer(Conv2D(2, 1, use_bias=False, kernel_regularizer="l2"), rng.normal(size=(1, 1, 4, 2)))
    chained = any_client.convolve([first, second], X)
    step = any_client.convolve(first, X)
    last = any_client.convolve(second, step.output)
    np.testing.assert_allclose(chained.output, last.output, rtol=1e-5, atol=1e-6)
    assert chained.losses == (step.losses[0], last.losses[0])
    assert chained.losses[1] == Losses(kernel=chained.losses[1].kernel)
    assert chained.layers == (None, None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_output_dtype_on_request(any_client: Any, dtype: str) -> None:
    kernel = np.ones((1, 1, 3, 1), np.float32)
    exact = np.round(X * 8) / 8  # sums of these have few bits, so every dtype holds them
    y = any_client.conv2d(exact, kernel=kernel, output_dtype=dtype)
    assert y.dtype.name == dtype
    np.testing.assert_array_equal(y.astype(np.float32)[..., 0], exact.sum(axis=-1))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integer_input_is_cast_without_scaling(any_client: Any, dtype: str) -> None:
    x = np.arange(48).reshape(1, 4, 4, 3).astype(dtype)
    y = any_client.conv2d(x, kernel=np.ones((1, 1, 3, 1), np.float32))
    np.testing.assert_array_equal(y[..., 0], x.sum(axis=-1, dtype=np.float32))


def test_plan_of_the_server_is_the_clients_own(any_client: Any) -> None:
    config = Conv2D(64, 3, strides=2, padding="same", dtype="mixed_float16")
    planned = any_client.plan(config, (4, 600, 600, 3), input_dtype="uint8")
    assert planned.admitted is True
    assert planned.refusal is None
    own = config.plan((4, 600, 600, 3), input_dtype="uint8")
    assert {**vars(own), "admitted": True} == vars(planned)


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


def test_server_refuses_in_the_clients_words(any_client: Any, server: RunningServer) -> None:
    """What the client finds and what the server finds, sent past the client's checks, is the same text."""
    from convserve.layers import messages
    from convserve.protocol.status import from_rpc_error
    from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc, layer_pb2

    with pytest.raises(convserve.InvalidConfigurationError) as by_client:
        any_client.conv2d(X, 4, 3, strides=2, dilation_rate=2)
    message = messages.to_message(Conv2D(4, 3, strides=2))
    message.dilation_rate.height = message.dilation_rate.width = 2
    request = convolution_service_pb2.PlanRequest(
        layers=[layer_pb2.LayerReference(inline=layer_pb2.InlineLayer(conv2d=message))], input_shape=X.shape
    )
    import grpc

    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            convolution_service_pb2_grpc.ConvolutionServiceStub(channel).Plan(request)
        by_server = from_rpc_error(failed.value)  # type: ignore[arg-type]
    assert type(by_server) is convserve.InvalidConfigurationError
    assert str(by_server) == str(by_client.value)
    assert by_server.violations == by_client.value.violations


def test_too_large_a_call_raises_the_servers_error(any_client: Any) -> None:
    with pytest.raises(convserve.TooLargeError, match="--max-call-bytes"):
        any_client.convolve([Conv2D(2**20, 1), Conv2D(1, 1)], np.zeros((1, 50, 50, 1), np.float32))


def test_timeout_is_an_error_of_its_own(any_client: Any) -> None:
    # gRPC sends a timeout in whole milliseconds, at least one: a small input is at times computed in it, this never.
    with pytest.raises(convserve.DeadlineExceededError, match="timeout=1e-06") as expired:
        any_client.conv2d(np.ones((1, 512, 512, 3), np.float32), 64, 7, timeout=1e-6)
    assert isinstance(expired.value, TimeoutError)


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
