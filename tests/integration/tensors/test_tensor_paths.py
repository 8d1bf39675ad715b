"""One message, pieces and shared memory: the same call gives the same, whichever way its tensors travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convserve
from convserve import Conv2D, Layer
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES, numpy_dtype
from tests.support.servers.server_process import RunningServer
from tests.support.tensor_paths import WAYS

LAST, FIRST = {"data_format": "channels_last"}, {"data_format": "channels_first"}
KERNEL = np.random.default_rng(0).integers(-3, 4, (3, 3, 2, 4)).astype("f4")
BIAS = np.float32([1, -2, 3, 0])
LAYER = Layer(Conv2D(4, 3, **LAST), KERNEL, BIAS)
EveryWay = Callable[[Callable[[Any], Any]], dict[str, Any]]


def image(*shape: int, dtype: Any = "f4") -> np.ndarray:
    """Returns whole numbers so small that every dtype holds all sums of their products."""
    return np.random.default_rng(shape).integers(0, 4, shape).astype(dtype)


def convolved(x: Any, kernel: np.ndarray = KERNEL, bias: Any = BIAS) -> np.ndarray:
    """Returns the convolution without padding as numpy computes it."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, "f8"), kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", windows, kernel.astype("f8")) + bias


def assert_all(found: dict[str, Any], expected: np.ndarray, dtype: str = "float32") -> None:
    assert set(found) == set(WAYS)
    for way, output in found.items():
        assert type(output) is np.ndarray, way
        assert output.dtype == numpy_dtype(dtype), way
        np.testing.assert_array_equal(output.astype("f8"), expected, way)


# Inputs


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_every_dtype(every_way: EveryWay, dtype: str) -> None:
    x = image(5, 7, 6, 2, dtype=numpy_dtype(dtype))
    assert_all(every_way(lambda client: client.convolve(LAYER, x).output), convolved(x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_policy_of_another_dtype(every_way: EveryWay, dtype: str) -> None:
    layer = Layer(Conv2D(4, 3, dtype=dtype, **LAST), KERNEL, BIAS)
    x = image(3, 6, 6, 2, dtype="u1")
    assert_all(every_way(lambda client: client.convolve(layer, x).output), convolved(x), dtype)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_an_output_dtype(every_way: EveryWay, dtype: str) -> None:
    x = image(3, 6, 6, 2)
    assert_all(every_way(lambda client: client.convolve(LAYER, x, output_dtype=dtype).output), convolved(x), dtype)


def test_channels_first(every_way: EveryWay) -> None:
    x = image(5, 2, 8, 6)
    layer = Layer(Conv2D(4, 3, **FIRST), KERNEL, BIAS)
    expected = convolved(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert_all(every_way(lambda client: client.convolve(layer, x).output), expected)


class OfASubclass(np.ndarray):
    """An array that is not just one."""


LAYOUTS = {
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0),
    "every other row": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "every other sample, backwards": lambda x: np.repeat(x, 2, axis=0)[::-2],
    "columns of a wider image": lambda x: np.pad(x, ((0, 0), (0, 0), (1, 3), (0, 0)))[:, :, 1:-3],
    "Fortran's order": np.asfortranarray,
    "one sample for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian and backwards": lambda x: x.astype(">f8")[:, ::-1],
    "at an odd address": lambda x: np.frombuffer(b"\0" + x.tobytes(), "u1")[1:].view("<f4").reshape(x.shape),
    "lists": lambda x: x.tolist(),
    "a subclass": lambda x: x.view(OfASubclass),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_the_input(every_way: EveryWay, layout: Callable[[Any], Any]) -> None:
    x = layout(image(4, 6, 7, 2).astype("f4"))
    if isinstance(x, list):
        x = [np.float32(each) for each in x]
    before = np.array(x)
    assert_all(every_way(lambda client: client.convolve(LAYER, x).output), convolved(before))
    np.testing.assert_array_equal(np.array(x), before)


@pytest.fixture(scope="module")
def open_clients(sharing_server: RunningServer) -> Iterator[dict[str, convserve.Client]]:
    """A client for each way."""
    with ExitStack() as opened:
        yield {
            name: opened.enter_context(convserve.Client(sharing_server.target, shared_memory=way.shares))
            for name, way in WAYS.items()
        }


@settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape_gives_the_same_bits(open_clients: dict[str, convserve.Client], data: st.DataObject) -> None:
    """And the right ones: of whole numbers so small no order of summation rounds anything."""
    batch, height, width = (data.draw(st.integers(1, most), name) for name, most in (("n", 9), ("h", 40), ("w", 40)))
    rows, columns = (data.draw(st.integers(1, min(3, size)), "kernel") for size in (height, width))
    channels, filters = data.draw(st.sampled_from([1, 3]), "c"), data.draw(st.sampled_from([1, 8]), "f")
    dtype = data.draw(st.sampled_from(["float32", "uint8", "float16"]), "dtype")
    output_dtype = data.draw(st.sampled_from(["float32", "float16"]), "output dtype")
    source = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    x = source.integers(0, 5, (batch, height, width, channels)).astype(dtype)
    kernel = source.integers(-2, 3, (rows, columns, channels, filters)).astype("f4")
    expected = convolved(x, kernel, 0).astype(output_dtype).tobytes()
    for name, client in open_clients.items():
        with WAYS[name].forced():
            output = client.conv2d(x, kernel=kernel, output_dtype=output_dtype, **LAST)
        assert output.shape == (batch, height - rows + 1, width - columns + 1, filters)
        assert (output + 0).tobytes() == expected  # + 0 makes 0 of -0


# Layers


def test_chains(every_way: EveryWay) -> None:
    second = Layer(Conv2D(3, 2, strides=2, activation="relu", use_bias=False, **LAST), image(2, 2, 4, 3) - 1)
    x = image(5, 9, 8, 2)
    expected = np.maximum(convolved(convolved(x), second.kernel, 0)[:, ::2, ::2], 0)
    assert_all(every_way(lambda client: client.convolve([LAYER, second], x).output), expected)


def test_losses(every_way: EveryWay) -> None:
    """The activity's penalty is the whole batch's, which therefore is not divided."""
    config = Conv2D(4, 3, kernel_regularizer="l1", bias_regularizer="l2", **LAST)
    plain, active = (Layer(each, KERNEL, BIAS) for each in (config, config.replace(activity_regularizer="l1")))
    x = image(5, 7, 6, 2)
    found = every_way(lambda client: client.convolve([plain], x))
    assert_all({way: each.output for way, each in found.items()}, convolved(x))
    for each in found.values():
        (losses,) = each.losses
        assert losses.activity is None
        assert losses.kernel == pytest.approx(0.01 * np.abs(KERNEL).sum())
        assert losses.bias == pytest.approx(0.01 * (BIAS**2).sum())
    found = every_way(lambda client: client.convolve([active, Layer(Conv2D(1, 1, **LAST))], x))
    for each in found.values():
        assert each.losses[0].activity == pytest.approx(0.01 * np.abs(convolved(x)).sum() / 5)
        assert each.batch_size >= 5  # one item


def test_weights_that_the_server_draws(every_way: EveryWay) -> None:
    """They are drawn once for the whole batch, and the configuration that comes back draws them again."""
    x = np.ones((6, 5, 5, 3), "f4")
    chain = [Conv2D(4, 3, **LAST), LAST_OF_CHAIN]
    for result in every_way(lambda client: client.convolve(chain, x)).values():
        for sample in result.output[1:]:  # which oneDNN's kernels may round otherwise
            np.testing.assert_allclose(sample, result.output[0], rtol=1e-5, atol=1e-6)
        assert result.layers[0].kernel_initializer.parameters["seed"] is not None
        again = every_way(lambda client, layers=result.layers: client.convolve(layers, x))
        for each in again.values():
            np.testing.assert_allclose(each.output, result.output, rtol=1e-5, atol=1e-6)


LAST_OF_CHAIN = Conv2D(2, 1, bias_initializer="random_normal", **LAST)


def test_stored_layers_that_the_server_lacks(every_way: EveryWay) -> None:
    """The client gives them, and makes the call again the same way."""
    x = image(5, 7, 6, 2)

    def call(client: Any) -> Any:
        stored = client.put(LAYER.config, kernel=KERNEL, bias=BIAS, name=f"paths/{id(client)}")
        client.delete(stored)
        output = client.convolve([stored, stored.config.replace(filters=1)], x).output
        assert output.shape[-1] == 1
        client.delete(stored)
        output = stored(x)
        assert client.missing([LAYER]) == []
        return output

    assert_all(every_way(call), convolved(x))


# Answers


def test_results_are_ordinary_arrays_of_their_own(every_way: EveryWay) -> None:
    x = image(3, 40, 40, 2)

    def call(client: Any) -> Any:
        first, second = (client.convolve(LAYER, x).output for _ in range(2))
        assert not np.shares_memory(first, second)
        for each in (first, second):
            assert each.flags.writeable
            assert each.flags.c_contiguous
            assert each.flags.aligned
        first[:] = np.nan
        first.fill(-1)
        third = client.convolve(LAYER, x).output
        assert (first == -1).all()
        np.testing.assert_array_equal(second, third)
        return third

    found = every_way(call)
    assert_all(found, convolved(x))  # all outlive their clients
    for each in found.values():
        each.fill(0)


def test_what_a_result_says_besides(every_way: EveryWay) -> None:
    x = image(5, 7, 6, 2)
    for way, result in every_way(lambda client: client.convolve(LAYER, x, batching=False)).items():
        assert result.device == "cpu:0"
        assert result.layers == (None,)
        assert result.losses == (convserve.Losses(),)
        assert result.timing.compute_us > 0
        assert result.timing.queue_us >= 0
        assert result.batch_size == {"pieces": 1, "pieces, some samples in an item": 4}.get(way, 5)
