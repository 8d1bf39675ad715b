"""Depthwise, separable and 1-D convolutions of Keras, computed by a server: the same numbers, files and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import convserve
import convserve.keras as remote_keras
from convserve.keras import RemoteDepthwiseConv2D, RemoteSeparableConv2D, to_local, to_remote
from tests.support.keras.models import apart, same_weights, with_random_statistics
from tests.support.keras.truth import keras
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

layers = keras.layers
PICTURE, SERIES = (9, 8, 4), (11, 4)
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3}

CASES = [
    ("DepthwiseConv2D", {"kernel_size": (3, 2)}),
    (
        "DepthwiseConv2D",
        {"kernel_size": 3, "strides": 2, "padding": "same", "depth_multiplier": 3, "activation": "elu"},
    ),
    ("DepthwiseConv2D", {"kernel_size": 3, "dilation_rate": 2, "use_bias": False, "dtype": "mixed_float16"}),
    ("SeparableConv2D", {"filters": 5, "kernel_size": 3, "depth_multiplier": 2, "activation": lambda x: x * 2 + 1}),
    ("SeparableConv2D", {"filters": 3, "kernel_size": 2, "strides": 2, "padding": "same", "use_bias": False}),
    ("SeparableConv2D", {"filters": 3, "kernel_size": 2, "dilation_rate": 2, "padding": "same", "dtype": "float64"}),
    ("Conv1D", {"filters": 5, "kernel_size": 3, "padding": "causal", "dilation_rate": 2, "activation": "relu"}),
    ("Conv1D", {"filters": 6, "kernel_size": 3, "strides": 2, "groups": 2, "activation": "softmax"}),
    ("Conv1D", {"filters": 6, "kernel_size": 4, "padding": "same", "use_bias": False, "dtype": "mixed_float16"}),
    ("DepthwiseConv1D", {"kernel_size": 3, "padding": "same", "depth_multiplier": 2, "activation": "tanh"}),
    ("DepthwiseConv1D", {"kernel_size": 2, "strides": 3, "use_bias": False}),
    ("SeparableConv1D", {"filters": 5, "kernel_size": 3, "depth_multiplier": 2, "activation": "gelu"}),
]


def model_of(kind: str, parameters: dict[str, Any]) -> Any:
    shape = SERIES if kind.endswith("1D") else PICTURE
    layer = getattr(layers, kind)(**parameters, name="stem")
    return with_random_statistics(keras.Sequential([keras.Input(shape), layer], name="tiny"))


def inputs(model: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, *model.input_shape[1:])).astype(np.float32)


@pytest.mark.parametrize(("kind", "parameters"), CASES)
def test_it_computes_what_keras_computes(server: RunningServer, kind: str, parameters: dict[str, Any]) -> None:
    model = model_of(kind, parameters)
    remote = to_remote(model, server.target)
    assert type(remote.layers[0]) is getattr(remote_keras, f"Remote{kind}")
    assert isinstance(remote.layers[0], getattr(layers, kind))
    x, tolerance = inputs(model), TOLERANCE[model.layers[0].compute_dtype]
    expected = model(x)
    for found in (remote(x), remote.predict(x, verbose=0)):
        assert found.dtype == expected.dtype
        assert apart(found, expected) < tolerance
    assert tf.function(remote)(x[:0]).shape == (0, *expected.shape[1:])
    local = to_local(remote)
    assert type(local.layers[0]) is getattr(layers, kind)
    assert same_weights(local, model)
    assert np.array_equal(local(x), expected)


@pytest.mark.parametrize("kind", ["DepthwiseConv2D", "Conv1D"])
def test_channels_first_is_channels_last_transposed(server: RunningServer, kind: str) -> None:
    """TensorFlow has no such convolution for CPUs, so Keras cannot say."""
    parameters = {"kernel_size": 3, "padding": "same"} | ({"filters": 5} if kind == "Conv1D" else {})
    model = model_of(kind, parameters)
    x = inputs(model)
    to_first, to_last = ((0, 3, 1, 2), (0, 2, 3, 1)) if x.ndim == 4 else ((0, 2, 1), (0, 2, 1))
    shape = x.transpose(to_first).shape[1:]
    first = keras.Sequential([keras.Input(shape), getattr(layers, kind)(**parameters, data_format="channels_first")])
    first.set_weights(model.get_weights())
    found = to_remote(first, server.target).predict(x.transpose(to_first), verbose=0)
    assert apart(found.transpose(to_last), model(x)) < 1e-5


def test_saved_models_keep_them(server: RunningServer, tmp_path: Path) -> None:
    images, series = keras.Input(PICTURE), keras.Input(SERIES)
    y = layers.SeparableConv2D(4, 3, activation=layers.LeakyReLU(0.3))(layers.DepthwiseConv2D(3)(images))
    z = layers.SeparableConv1D(3, 2)(layers.DepthwiseConv1D(2)(layers.Conv1D(4, 2)(series)))
    model = with_random_statistics(keras.Model([images, series], [y, z]))
    given = [np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32) for shape in (PICTURE, SERIES)]
    remote = to_remote(model, server.target, timeout=90)
    remote.save(tmp_path / "remote.keras")
    loaded = keras.models.load_model(tmp_path / "remote.keras")
    assert [type(each) for each in loaded.layers] == [type(each) for each in remote.layers]
    assert {each.timeout for each in loaded.layers if hasattr(each, "timeout")} == {90}
    for found, expected in zip(loaded(given), model(given), strict=True):
        assert apart(found, expected) < 1e-5
    assert same_weights(loaded, model)


@pytest.mark.parametrize(("kind", "parameters"), [CASES[1], CASES[3], CASES[6], CASES[9]])
def test_gradients_go_through_a_frozen_one_as_in_keras(
    server: RunningServer, kind: str, parameters: dict[str, Any]
) -> None:
    model = model_of(kind, parameters)
    remote, x = to_remote(model, server.target), tf.constant(inputs(model))

    def gradient(layer: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, x)

    with pytest.raises(convserve.InvalidRequestError, match="no gradient through a layer"):
        gradient(remote)
    with pytest.raises(convserve.InvalidRequestError, match=r"(?s)training=True.*") as refused:
        remote(x, training=True)
    assert refused.value.__notes__ == [f"In the Remote{kind} 'stem'."]
    remote.trainable = False
    for compute in (gradient, tf.function(gradient)):
        np.testing.assert_allclose(compute(remote), gradient(model), rtol=1e-4, atol=1e-4)


def test_weights_are_put_again_when_they_changed(server: RunningServer) -> None:
    model = model_of("SeparableConv2D", {"filters": 3, "kernel_size": 3})
    remote, x = to_remote(model, server.target), inputs(model)
    before = np.asarray(remote(x))
    put = remote.layers[0]._remote._put
    assert np.array_equal(remote(x), before)
    assert remote.layers[0]._remote._put is put
    for each in (model, remote):
        each.layers[0].pointwise_kernel.assign(-each.layers[0].pointwise_kernel)
    assert apart(remote(x), model(x)) < 1e-5


def test_one_made_by_hand_counts_and_penalizes_as_keras_does(server: RunningServer) -> None:
    remote = RemoteSeparableConv2D(4, 3, depthwise_regularizer="l2", activity_regularizer="l1", server=server.target)
    twin = layers.SeparableConv2D(4, 3, depthwise_regularizer="l2", activity_regularizer="l1")
    x = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
    remote.build(x.shape)
    twin.build(x.shape)
    twin.set_weights(remote.get_weights())
    assert apart(remote(x), twin(x)) < 1e-5
    assert remote.count_params() == twin.count_params()
    assert np.allclose([float(each) for each in remote.losses], [float(each) for each in twin.losses], rtol=1e-5)
    assert RemoteDepthwiseConv2D.from_config(RemoteDepthwiseConv2D(3).get_config()).kernel_size == (3, 3)


def test_put_takes_a_layer_of_keras(client: convserve.Client, server: RunningServer) -> None:
    x = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
    for layer in (layers.Conv2D(4, 3), layers.DepthwiseConv2D(3), RemoteDepthwiseConv2D(3, server=server.target)):
        layer.build(x.shape)
        assert apart(client.put(layer)(x), layer(x)) < 1e-5
    assert client.put(layers.Conv2D(4, 3), input_channels=3, seed=1)(x).shape == (2, 4, 4, 4)
    separable = layers.SeparableConv2D(4, 3)
    separable.build(x.shape)
    with pytest.raises(convserve.InvalidRequestError, match="chain of 2"):
        client.put(separable)
    for other in (layers.Dense(3), layers.Conv2DTranspose(3, 3)):
        with pytest.raises(convserve.InvalidConfigurationError, match=type(other).__name__):
            client.put(other)
