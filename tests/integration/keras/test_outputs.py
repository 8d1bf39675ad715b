"""Whatever `keras.layers.Conv2D` computes the service computes: outputs, losses, and the amounts in the plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convserve
from convserve import activations, initializers
from tests.support.keras import truth as keras_truth
from tests.support.keras.calls import FLOAT_DTYPES, SEEDS, Call, calls, examples
from tests.support.keras.tolerance import TOLERANCE, assert_losses_agree, largest, worst_excess


@given(call=calls())
@examples(60)
def test_outputs_losses_and_amounts_are_keras(client: convserve.Client, call: Call) -> None:
    """All parameters at once: values, each loss, and what the plan says of them."""
    truth = keras_truth.run(call.arguments, call.x, *call.weights)
    layer = convserve.Layer(call.config, *call.weights)
    result = client.convolve(layer, call.x, output_dtype=call.output_dtype)
    assert worst_excess(result.output, truth, call.output_dtype) <= 1
    assert_losses_agree(result.losses[0], truth)
    plan = call.config.plan(call.shape, input_dtype=call.dtype, output_dtype=call.output_dtype)
    assert plan.output_shape == truth.output.shape
    assert plan.output_dtype == result.output.dtype.name
    assert plan.output_bytes == result.output.nbytes
    assert plan.input_bytes == call.x.nbytes
    assert plan.parameters == truth.parameters
    assert plan.weight_bytes == truth.kernel.nbytes + (0 if truth.bias is None else truth.bias.nbytes)
    assert plan.layers[0].kernel_shape == truth.kernel.shape
    places = truth.before.size // call.config.filters
    assert plan.flops == places * (2 * truth.kernel.size + (0 if truth.bias is None else truth.bias.size))


@given(call=calls())
@examples(20)
def test_sums_of_whole_numbers_are_exact(client: convserve.Client, call: Call) -> None:
    """Where rounding has no part, nothing differs at all."""
    exact = {"activation": None, "activity_regularizer": None, "dtype": "float32"}
    call = dataclasses.replace(call, values=call.values | exact, dtype="int8", whole=True, weighted=True)
    truth = keras_truth.run(call.arguments, call.x, *call.weights)
    found = client.convolve(convserve.Layer(call.config, *call.weights), call.x).output
    np.testing.assert_array_equal(found, truth.output)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("name", sorted(activations.Activation.members))
def test_every_activation_is_keras(client: convserve.Client, name: str, dtype: str) -> None:
    """By its name, with Keras' defaults, with a batch, a height and a width that differ from each other.

    In one type in both data formats: what transposes does not look at numbers.
    """
    function: Any = activations.Threshold(0.25, -1.5) if name == "threshold" else name
    shapes = {"channels_last": (2, 5, 6, 4), "channels_first": (2, 4, 5, 6)}
    for data_format in shapes if dtype == "float32" else ("channels_last",):
        values = {"filters": 6, "kernel_size": 3, "activation": function, "data_format": data_format, "dtype": dtype}
        call = Call(values, "convserve", shapes[data_format])
        result = client.convolve(convserve.Layer(call.config, *call.weights), call.x)
        assert worst_excess(result.output, keras_truth.run(values, call.x, *call.weights)) <= 1


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("axis", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("kind", [activations.Softmax, activations.LogSoftmax, activations.Sparsemax, activations.GLU])
def test_every_axis_of_an_activation_is_keras(client: convserve.Client, kind: Any, axis: int, data_format: str) -> None:
    """In float16, in which not every operation exists."""
    values = {
        "filters": 4, "kernel_size": 1, "activation": kind(axis), "data_format": data_format, "dtype": "mixed_float16",
    }  # fmt: skip
    call = Call(values, "convserve", (3, 2, 6, 2))
    result = client.convolve(convserve.Layer(call.config, *call.weights), call.x)
    assert worst_excess(result.output, keras_truth.run(values, call.x, *call.weights)) <= 1


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_infinities_and_nan_are_computed_with(client: convserve.Client, dtype: str) -> None:
    values = {"filters": 2, "kernel_size": 2, "padding": "same", "dtype": dtype}
    call = Call(values, "convserve", (1, 8, 8, 1))
    x = call.x
    x[0, 1, 1], x[0, 6, 1], x[0, 3, 6] = np.nan, np.inf, -np.inf
    truth = keras_truth.run(values, x, *call.weights)
    assert np.isnan(truth.output).any()
    assert np.isinf(truth.output.astype("f4")).any()
    assert worst_excess(client.convolve(convserve.Layer(call.config, *call.weights), x).output, truth) <= 1


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(
    "parameters",
    [
        {"groups": 4, "padding": "same"}, {"groups": 4, "strides": 2}, {"groups": 4, "dilation_rate": 2},
        {"groups": 4, "strides": (1, 2)}, {"groups": 2, "padding": "same"},
        {"groups": 4, "padding": ((1, 0), (2, 1)), "dilation_rate": 2, "data_format": "channels_first"},
    ],
    ids=str,
)  # fmt: skip
def test_infinities_stay_within_their_group(client: convserve.Client, parameters: dict[str, Any], dtype: str) -> None:
    """Unlike Keras', which XLA computes on CPUs in float64 with zeros for other groups, and zero times infinity is NaN.

    The truth is a layer of each group alone.
    """
    groups, is_first = parameters["groups"], parameters.get("data_format") == "channels_first"
    values = {"filters": 8, "kernel_size": 2, "dtype": dtype} | parameters
    call = Call(values, "convserve", (1, 4, 7, 8) if is_first else (1, 7, 8, 4))
    x, (kernel, bias) = call.x, call.weights
    channels = x if is_first else x.transpose(0, 3, 1, 2)  # views
    channels[0, 0, 3, 3], channels[0, 0, 5, 1], channels[0, -1, 2, 6] = np.inf, -np.inf, np.nan
    found = client.convolve(convserve.Layer(call.config, kernel, bias), x).output
    alone = []
    for channel, first in zip(range(0, 4, 4 // groups), range(0, 8, 8 // groups), strict=True):
        own, its = slice(channel, channel + 4 // groups), slice(first, first + 8 // groups)
        one = values | {"groups": 1, "filters": 8 // groups}
        part = channels[:, own] if is_first else x[..., own]
        alone.append(keras_truth.run(one, part, kernel[..., its], bias[its]).output)
    expected = np.concatenate(alone, 1 if is_first else -1)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(np.isfinite(found.astype("f4")), np.isfinite(expected.astype("f4")))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


def test_channels_first_truth_is_what_keras_computes_when_compiled() -> None:
    """Keras runs channels_first on a CPU after all if XLA compiles it: the transpositions are the same layer.

    Without strides, because with strides and a bias XLA's result for CPUs is wrong (TensorFlow 2.21).
    """
    values = {
        "filters": 4, "kernel_size": (3, 2), "padding": "same", "data_format": "channels_first",
        "activation": "softmax",
    }  # fmt: skip
    call = Call(values, "convserve", (2, 3, 5, 7))
    kernel, bias = call.weights
    layer = keras_truth.keras_layer(values)
    layer.build(call.shape)
    layer.set_weights([kernel, bias])
    compiled = keras_truth.tf.function(layer, jit_compile=True, autograph=False)(call.x).numpy()
    np.testing.assert_allclose(keras_truth.run(values, call.x, kernel, bias).output, compiled, atol=1e-6)


@st.composite
def chains(draw: Any) -> list[dict[str, Any]]:
    """Draws two or three layers, each of which takes what the one before it gives."""
    return [
        {
            "filters": 2 * draw(st.integers(1, 3)),
            "kernel_size": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            "padding": "same",
            "data_format": draw(st.sampled_from(("channels_last", "channels_first"))),
            "groups": draw(st.sampled_from((1, 1, 2))),
            "activation": draw(st.sampled_from((None, "relu", "tanh", "softmax", "elu"))),
            "kernel_initializer": initializers.HeNormal(seed=draw(SEEDS)),
            "kernel_regularizer": draw(st.none() | st.just("l2")),
            "activity_regularizer": draw(st.none() | st.just("l1")),
            "dtype": draw(st.sampled_from(("float32", "float64", "mixed_float16", "bfloat16"))),
        }
        for _ in range(draw(st.integers(2, 3)))
    ]


@given(chain=chains())
@examples(15)
def test_a_chain_is_its_layers_one_after_another(client: convserve.Client, chain: list[dict[str, Any]]) -> None:
    """With policies and data formats of their own, and the losses of each."""
    x = Call(chain[0], "convserve", (2, 4, 6, 8)).x
    result = client.convolve([convserve.Conv2D(**layer) for layer in chain], x)
    coarsest = 0.0
    for layer, losses in zip(chain, result.losses, strict=True):
        truth = keras_truth.run(layer, x)
        x, coarsest = truth.output, max(coarsest, 4 * TOLERANCE[truth.output.dtype.name])
        for what in ("kernel", "bias", "activity"):
            expected = getattr(truth.losses, what)
            assert getattr(losses, what) == (None if expected is None else pytest.approx(expected, rel=2 * coarsest))
    assert result.output.dtype == x.dtype
    assert result.output.shape == x.shape
    expected = x.astype("f8")
    np.testing.assert_allclose(result.output.astype("f8"), expected, atol=coarsest * max(1.0, largest(expected)))
