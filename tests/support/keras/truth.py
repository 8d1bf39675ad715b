"""What the service is held against: `keras.layers.Conv2D` of the installed Keras, run in this process.

Nothing here computes with the service's code. Values of `convserve.initializers` and its siblings become Keras' own
objects by their class' name, which is Keras'; everything else a caller may write reaches Keras as it was written.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, by its C++ side
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import convserve
from convserve._keras_object import KerasObject
from convserve.activations import Activation

# Keras' grouped convolution makes a new tf.function with every call, of which TensorFlow warns each time.
tf.get_logger().setLevel("ERROR")
# The servers of the tests compute on the CPU too; numbers of two kinds of device agree less closely.
tf.config.set_visible_devices([], "GPU")

Arguments = Mapping[str, Any]
"""The arguments of `convserve.Conv2D`, by name."""


@dataclass(frozen=True)
class Truth:
    """What Keras made of a layer and an input.

    Attributes:
        output: The output, in the compute dtype.
        before: The input of the activation.
        activation: The activation, on arrays in the compute dtype.
        losses: What `layer.losses` lists, each under its name.
        kernel: The kernel that was computed with, in the variable dtype.
        bias: Likewise; None without one.
        shape: The output's shape by Keras' own arithmetic, which knows of no activation; None for explicit padding.
        parameters: `layer.count_params()`.
    """

    output: np.ndarray
    before: np.ndarray
    activation: Callable[[np.ndarray], np.ndarray]
    losses: convserve.Losses
    kernel: np.ndarray
    bias: np.ndarray | None
    shape: tuple[int, ...] | None
    parameters: int


class _Watched:
    """An activation that keeps what it was given."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.seen: Any = None

    def __call__(self, x: Any) -> Any:
        self.seen = x
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using a softmax over axis", UserWarning)  # one of size 1
            return self.function(x)


def keras_value(value: Any) -> Any:
    """Returns a value of convserve's as Keras' own object, and any other as it is."""
    if isinstance(value, Activation):
        function = getattr(keras.activations, value.keras_name)  # which Keras can serialize, unlike a partial
        return functools.partial(function, **value.parameters) if value.parameters else function
    if isinstance(value, KerasObject):
        return getattr(getattr(keras, f"{value.family}s"), type(value).__name__)(**value.parameters)
    return value


def keras_layer(arguments: Arguments) -> keras.layers.Conv2D:
    """Returns Keras' layer of these arguments, not built.

    Raises:
        Exception: Whatever Keras raises.
    """
    given = {name: keras_value(value) for name, value in arguments.items()}
    if isinstance(given.get("padding"), tuple | list):
        given["padding"] = "valid"  # after ZeroPadding2D, see `run`
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Do not pass an `input_shape`", UserWarning)  # meant for whole models
        return keras.layers.Conv2D(**given)


def run(arguments: Arguments, x: np.ndarray, kernel: Any = None, bias: Any = None) -> Truth:
    """Returns what Keras makes of a layer and an input.

    Args:
        arguments: Of the layer. `padding` may be ((top, bottom), (left, right)): the truth for it is
            `keras.layers.ZeroPadding2D` before a "valid" layer.
        x: The input. Integers are cast to the compute dtype, which Keras leaves to its caller.
        kernel: The weights. None: Keras draws them.
        bias: With a kernel, and only if the layer has one.

    Raises:
        Exception: Whatever Keras raises, be it when the layer is made, built or called, or when its losses are read.
    """
    layer = keras_layer(arguments)
    layer.activation = watched = _Watched(layer.activation)
    dtype = layer.compute_dtype
    if np.issubdtype(x.dtype, np.integer):
        x = keras.ops.cast(x, dtype)
    padding = arguments.get("padding", "valid")
    explicit = isinstance(padding, tuple | list)
    if explicit:
        x = keras.layers.ZeroPadding2D(padding, data_format=layer.data_format, dtype=dtype)(x)
    layer.build(x.shape)
    if kernel is not None:
        layer.set_weights([kernel] if bias is None else [kernel, bias])
    for weight in layer.weights:
        if isinstance(weight.regularizer, keras.regularizers.OrthogonalRegularizer):
            weight.regularizer = None  # Keras computes outputs, and raises when losses are read
    output = layer(x) if layer.data_format == "channels_last" else _called_channels_first(layer, arguments, x)
    before = np.asarray(watched.seen)
    names = [what for what in ("activity", "kernel", "bias") if _has_loss(layer, what)]
    return Truth(
        output=np.asarray(output),
        before=before,
        activation=lambda array: np.asarray(watched(tf.convert_to_tensor(array))),
        losses=convserve.Losses(**dict(zip(names, map(float, layer.losses), strict=True))),
        kernel=np.asarray(layer.kernel),
        bias=None if layer.bias is None else np.asarray(layer.bias),
        shape=None if explicit else layer.compute_output_shape(tuple(x.shape)),
        parameters=layer.count_params(),
    )


def disagreement(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference between two outputs as a share of the largest expected magnitude.

    It goes sample by sample, because outputs may be hundreds of megabytes.
    """
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    worst = max(float(np.max(np.abs(one - other))) for one, other in zip(found, expected, strict=True))
    most = max(float(np.max(np.abs(one))) for one in expected)
    return worst / most if most else worst


def refusal(arguments: Arguments, input_shape: tuple[int, ...]) -> Exception | None:
    """Returns what Keras raises for a layer and an input of this shape, or None if it takes them."""
    try:
        run(arguments, np.ones(input_shape, "f4"))
    except Exception as error:  # Keras raises whatever comes: ValueError, KeyError, TypeError, errors of TensorFlow's
        return error
    return None


def _called_channels_first(layer: keras.layers.Conv2D, arguments: Arguments, x: Any) -> Any:
    """Returns the output of a channels_first layer, and adds its activity's loss to it.

    TensorFlow has no such convolution for CPUs, so Keras cannot run one there. Its value is that of a channels_last
    layer without activation between two transpositions, and then activation and activity regularizer.
    """
    bare = {"data_format": "channels_last", "activation": None, "activity_regularizer": None}
    twin = keras_layer({**arguments, **bare})
    channels_last = keras.ops.transpose(x, (0, 2, 3, 1))
    twin.build(channels_last.shape)
    twin.set_weights(layer.get_weights())
    output = layer.activation(keras.ops.transpose(twin(channels_last), (0, 3, 1, 2)))
    if layer.activity_regularizer is not None:
        total = layer.activity_regularizer(output)
        layer.add_loss(keras.ops.divide_no_nan(total, keras.ops.cast(output.shape[0], total.dtype)))
    return output


def _has_loss(layer: keras.layers.Conv2D, what: str) -> bool:
    """Returns whether Keras has a loss for it; that it has exactly these is checked by their number."""
    if getattr(layer, f"{what}_regularizer") is None:
        return False
    return what == "activity" or (layer.trainable and getattr(getattr(layer, what), "regularizer", None) is not None)
