"""Gradients around remote layers: what is before, behind and beside a frozen one trains as in Keras."""

from __future__ import annotations

import functools
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, by its C++ side
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
import tensorflow as tf

import convserve
from convserve.keras import to_remote
from tests.support.keras.twins import built_twins
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
tf.config.set_visible_devices([], "GPU")
tf.get_logger().setLevel("ERROR")  # of a model for each test, TensorFlow says that it traces often

layers = keras.layers
X = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)


twins = functools.partial(built_twins, size=8, filters=6, kernel_size=3, trainable=False)


def gradient(layer: Any, x: Any) -> Any:
    """Returns the gradient of a loss for a layer's input."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.cast(layer(x), tf.float32) ** 2)
    return tape.gradient(loss, x)


CASES: list[dict[str, Any]] = [
    {},
    {"strides": 2, "padding": "same", "activation": "relu", "use_bias": False},
    {"groups": 2, "dilation_rate": 2, "activation": "gelu"},
    {"activation": "softmax"},
    {"activation": lambda x: x**2},
    {"dtype": "mixed_float16", "activation": "tanh"},
    {"dtype": "float64"},
]


@pytest.mark.parametrize("parameters", CASES, ids=lambda each: "-".join(each) or "defaults")
def test_the_gradient_for_the_input_of_a_frozen_layer_is_keras(
    server: RunningServer, parameters: dict[str, Any]
) -> None:
    original, remote = twins(server.target, **parameters)
    expected = gradient(original, X.astype(original.compute_dtype))
    tolerance = 2e-2 if "float16" in remote.compute_dtype else 1e-4
    for compute in (gradient, tf.function(gradient)):
        found = compute(remote, tf.constant(X, remote.compute_dtype))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_the_gradient_of_channels_first_is_that_of_channels_last(server: RunningServer) -> None:
    last, _ = twins(server.target, padding="same", activation="relu")
    _, first = twins(server.target, padding="same", activation="relu", data_format="channels_first")
    found = gradient(first, X.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(np.transpose(found, (0, 2, 3, 1)), gradient(last, X), rtol=1e-4, atol=1e-4)


def test_a_gradient_of_a_gradient_is_keras(server: RunningServer) -> None:
    penalties = []
    for layer in twins(server.target, activation="tanh"):
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            penalty = tf.reduce_sum(gradient(layer, x) ** 2)
        penalties.append(tape.gradient(penalty, x))
    np.testing.assert_allclose(penalties[1], penalties[0], rtol=1e-3, atol=1e-4 * np.abs(penalties[0]).max())


def test_what_is_before_a_frozen_layer_learns(server: RunningServer) -> None:
    histories = []
    for layer in twins(server.target, groups=2, activation="relu"):
        model = keras.Sequential([keras.Input((8, 8, 4)), layers.Dense(4, kernel_initializer="identity"), layer])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        histories.append(model.fit(X, np.ones((2, 6, 6, 6)), epochs=3, verbose=0).history["loss"])
        assert layer.get_weights()[0].std() == pytest.approx(0.2, rel=0.2)
    np.testing.assert_allclose(*histories, rtol=1e-4)
    assert histories[0][0] > histories[0][-1]


def test_a_frozen_teacher_predicts_within_a_tape(server: RunningServer) -> None:
    """Distillation: no gradient is wanted of what the teacher says."""
    made = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(6, 3, activation="relu"), layers.Conv2D(2, 1)])
    teacher = to_remote(made, server.target)
    student = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(2, 3)])
    with pytest.raises(convserve.InvalidRequestError, match="set trainable=False on the layers that stay"):
        distilled(teacher, student)
    teacher.trainable = False
    expected = made.predict(X, verbose=0)
    for compute in (distilled, tf.function(distilled)):
        said, gradients = compute(teacher, student)
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)
        assert all(float(tf.norm(each)) > 0 for each in gradients)


@tf.autograph.experimental.do_not_convert
def distilled(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Returns what a teacher says, and a student's gradients."""
    with tf.GradientTape() as tape:
        if tf.executing_eagerly():
            said = tf.constant(teacher.predict(X, verbose=0))
        else:
            said = tf.function(teacher)(tf.constant(X), training=False)
        loss = tf.reduce_mean((student(X, training=True) - said) ** 2)
    return said, tape.gradient(loss, student.trainable_variables)
