"""Keras' convolutions that are not Conv2Ds, computed as Conv2Ds by a server, beside Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convserve
from convserve.layers.keras_layers import CONVOLUTIONS
from tests.support.keras.tolerance import TOLERANCE
from tests.support.keras.truth import keras

layers = keras.layers
ACTIVATIONS = (None, "relu", "elu", "softmax", "gelu", "tanh", "relu6", "softplus")
DTYPES = ("float32", "float32", "float64", "mixed_float16", "bfloat16")


def drawn(kind: str, rng: np.random.Generator) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Returns what Keras computes of a kind, with an input's shape; channels come last, and strides are alike.

    TensorFlow has no other strides of depthwise convolutions, nor on a CPU another data format; those here have.
    """
    rank = 1 if kind.endswith("1D") else 2
    channels = int(rng.integers(2, 5))
    stride, dilation = (int(rng.integers(1, 4)), 1) if rng.random() < 0.5 else (1, int(rng.integers(1, 4)))
    paddings = ["valid", "same"] + (["causal"] if kind == "Conv1D" else [])
    parameters: dict[str, Any] = {
        "kernel_size": tuple(int(size) for size in rng.integers(1, 4, rank)),
        "strides": stride,
        "dilation_rate": dilation,
        "padding": str(rng.choice(paddings)),
        "activation": ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
        "use_bias": bool(rng.random() < 0.7),
        "dtype": DTYPES[rng.integers(len(DTYPES))],
    }
    if not kind.startswith("Depthwise"):
        parameters["filters"] = int(rng.integers(2, 6))
    if kind.startswith(("Depthwise", "Separable")):
        parameters["depth_multiplier"] = int(rng.integers(1, 4))
    if kind == "Conv1D" and rng.random() < 0.5:
        parameters |= {"groups": channels, "filters": channels * int(rng.integers(1, 3))}
    return parameters, (2, *(int(size) for size in rng.integers(7, 13, rank)), channels)


def built(kind: str, shape: tuple[int, ...], rng: np.random.Generator, **parameters: Any) -> Any:
    layer = getattr(layers, kind)(**parameters)
    layer.build((None, *shape[1:]))
    layer.set_weights([rng.normal(size=each.shape) for each in layer.get_weights()])
    return layer


def served(client: convserve.Client, layer: Any, x: Any) -> Any:
    """Returns what a server makes of Keras' layer and of its input, which may lack the height."""
    taken = convserve.Layer.from_keras(layer)
    chain = taken if isinstance(taken, list) else [taken]
    axis = 1 if layer.data_format == "channels_last" else 2
    if x.ndim == 4:
        return client.convolve(chain, x).output
    return client.convolve(chain, np.expand_dims(x, axis)).output.squeeze(axis)


def assert_close(found: Any, expected: Any, dtype: str) -> None:
    expected = np.asarray(expected)
    assert found.dtype == expected.dtype
    wide = expected.astype(np.float64)
    # Of a separable one, what is between is rounded too.
    np.testing.assert_allclose(found.astype(np.float64), wide, rtol=0, atol=4 * TOLERANCE[dtype] * np.abs(wide).max())


@pytest.mark.parametrize("kind", CONVOLUTIONS[1:])
def test_drawn_configurations_are_what_keras_computes(client: convserve.Client, kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for _ in range(5):
        parameters, shape = drawn(kind, rng)
        layer = built(kind, shape, rng, **parameters)
        x = rng.normal(size=shape).astype(np.float32)
        assert_close(served(client, layer, x), layer(x), layer.compute_dtype)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_channels_first_is_the_same_with_its_axes_elsewhere(client: convserve.Client, kind: str) -> None:
    rng = np.random.default_rng(7)
    rank = 1 if kind.endswith("1D") else 2
    parameters: dict[str, Any] = {"kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"}
    if not kind.startswith("Depthwise"):
        parameters["filters"] = 5
    shape = (2, *(8, 9)[:rank], 3)
    last = built(kind, shape, rng, **parameters)
    first = getattr(layers, kind)(**parameters, data_format="channels_first")
    first.build((None, 3, *shape[1:-1]))
    first.set_weights(last.get_weights())
    x = rng.normal(size=shape).astype(np.float32)
    found = served(client, first, np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    assert_close(np.moveaxis(found, 1, -1), last(x), "float32")


def test_strides_that_differ_are_computed_too(client: convserve.Client) -> None:
    """TensorFlow refuses them for depthwise convolutions: a Conv2D with as many groups has them."""
    rng = np.random.default_rng(8)
    depthwise = built("DepthwiseConv2D", (1, 9, 9, 3), rng, kernel_size=3, depth_multiplier=2, strides=(1, 2))
    grouped = layers.Conv2D(6, 3, strides=(1, 2), groups=3)
    grouped.build((None, 9, 9, 3))
    kernel, bias = depthwise.get_weights()
    grouped.set_weights([kernel.reshape(3, 3, 1, 6), bias])
    x = rng.normal(size=(1, 9, 9, 3)).astype(np.float32)
    assert_close(served(client, depthwise, x), grouped(x), "float32")


def test_losses_are_keras(client: convserve.Client) -> None:
    rng = np.random.default_rng(9)
    parameters = {"depthwise_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2"}
    layer = built("DepthwiseConv2D", (2, 6, 6, 3), rng, kernel_size=3, depth_multiplier=2, **parameters)
    x = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    layer(x)
    (losses,) = client.convolve(convserve.Layer.from_keras(layer), x).losses
    expected = sorted(float(loss) for loss in layer.losses)
    assert sorted((losses.kernel, losses.bias, losses.activity)) == pytest.approx(expected, rel=1e-4)


def test_lora_is_part_of_the_kernel(client: convserve.Client) -> None:
    rng = np.random.default_rng(10)
    layer = built("Conv1D", (2, 9, 3), rng, filters=4, kernel_size=3)
    layer.enable_lora(2)
    layer.lora_kernel_a.assign(rng.normal(size=layer.lora_kernel_a.shape))
    layer.lora_kernel_b.assign(rng.normal(size=layer.lora_kernel_b.shape))
    x = rng.normal(size=(2, 9, 3)).astype(np.float32)
    assert_close(served(client, layer, x), layer(x), "float32")


def test_weights_of_a_conv1d_are_drawn_as_keras_draws_them(client: convserve.Client) -> None:
    layer = layers.Conv1D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=3), bias_initializer="ones")
    x = np.random.default_rng(11).normal(size=(2, 9, 3)).astype(np.float32)
    unbuilt = convserve.Layer.from_keras(layer)
    assert isinstance(unbuilt, convserve.Layer)
    assert unbuilt.kernel is None
    expected = layer(x)
    assert_close(client.convolve(unbuilt, x[:, None]).output[:, 0], expected, "float32")


def test_objects_of_the_users_own_that_are_beside_outputs_are_left_out_with_a_word(client: convserve.Client) -> None:
    rng = np.random.default_rng(12)
    layer = built("SeparableConv2D", (1, 6, 6, 3), rng, filters=2, kernel_size=3, depthwise_regularizer=keras.ops.sum,
                  pointwise_initializer=keras.ops.ones)  # fmt: skip
    x = rng.normal(size=(1, 6, 6, 3)).astype(np.float32)
    with pytest.warns(UserWarning, match="^kernel_regularizer: left out"):
        assert_close(served(client, layer, x), layer(x), "float32")
    with pytest.raises(convserve.InvalidConfigurationError, match="activation: Expected"):
        convserve.Layer.from_keras(
            built("Conv1D", (1, 6, 3), rng, filters=2, kernel_size=3, activation=lambda x: x * 2)
        )


class Scaled(layers.DepthwiseConv2D):
    """A computation of its own."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) * 2


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        (Scaled(3), "goes by its configuration"),
        (layers.Conv2DTranspose(4, 3), "A transposed convolution spreads its input.*compute it locally"),
        (layers.Conv1DTranspose(4, 3), "compute it locally"),
        (layers.Conv3D(4, 3), "one direction more.*compute it locally"),
        (layers.Dense(4), r"Layer\(Conv2D\(units, 1\), kernel\[None, None\], bias\)"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_cannot_be_says_what_to_do(layer: Any, hint: str) -> None:
    with pytest.raises(
        convserve.InvalidConfigurationError, match=rf"layer: Expected a keras\.layers\.Conv2D, .*{hint}"
    ):
        convserve.Layer.from_keras(layer)


def test_a_dense_layer_is_the_conv2d_that_the_advice_says(client: convserve.Client) -> None:
    rng = np.random.default_rng(13)
    dense = layers.Dense(4)
    dense.build((None, 3))
    kernel, bias = (rng.normal(size=each.shape).astype(np.float32) for each in dense.get_weights())
    dense.set_weights([kernel, bias])
    x = rng.normal(size=(2, 3)).astype(np.float32)
    layer = convserve.Layer(convserve.Conv2D(4, 1), kernel[None, None], bias)
    assert_close(client.convolve(layer, x[:, None, None]).output[:, 0, 0], dense(x), "float32")


@pytest.mark.parametrize("kind", [kind for kind in CONVOLUTIONS if "wise" in kind or "Separable" in kind])
def test_one_whose_input_is_not_known_has_to_be_built(kind: str) -> None:
    layer = getattr(layers, kind)(**({"filters": 4} if kind.startswith("Separable") else {}), kernel_size=3)
    with pytest.raises(
        convserve.InvalidConfigurationError, match=rf"layer: Expected a built {kind}.*build\(input_shape"
    ):
        convserve.Layer.from_keras(layer)
