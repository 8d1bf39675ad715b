"""Layers as Keras' own: what leaves convserve computes without it. It needs Keras, and any of Keras' backends."""

from __future__ import annotations

from typing import Any

from convserve.errors import InvalidConfigurationError, MissingDependencyError
from convserve.layers.conv2d import Conv2D
from convserve.tensors.codec import Array


def to_keras(config: Conv2D, kernel: Array | None, bias: Array | None, input_channels: int | None) -> Any:
    """Returns a `keras.layers.Conv2D` with a layer's configuration and weights.

    Keras has no explicit padding, so a layer that has it becomes a `keras.Sequential` of a `ZeroPadding2D` and a
    Conv2D, which computes the same. A layer without weights becomes one that is not built. The configuration's
    `input_shape` is left out, because Keras wants it in an Input instead.

    Raises InvalidConfigurationError as `Conv2D.to_keras_config`, and for strides together with a dilation_rate, which
    no layer of Keras' has, or MissingDependencyError without Keras.
    """
    try:
        import keras
    except ImportError as error:
        text = "A Keras layer needs Keras: pip install keras, and one of its backends."
        raise MissingDependencyError(text) from error
    if config.strides_and_dilates:
        expected = "strides or dilation_rate of 1, as Keras has no layer in which both are above 1"
        received = f"strides={config.strides} and dilation_rate={config.dilation_rate}"
        raise InvalidConfigurationError.for_field("strides", expected, received)
    padding = config.padding
    config = config.replace(input_shape=None, padding=padding if isinstance(padding, str) else "valid")
    conv2d = keras.layers.Conv2D.from_config(config.to_keras_config())
    last = config.data_format == "channels_last"
    shape = (None, None, None, input_channels) if last else (None, input_channels, None, None)
    if input_channels is not None:
        conv2d.build(shape)
        conv2d.set_weights([kernel] if bias is None else [kernel, bias])
    if isinstance(padding, str):
        return conv2d
    pad = keras.layers.ZeroPadding2D(padding, data_format=config.data_format, dtype=config.dtype)
    model = keras.Sequential([pad, conv2d], name=config.name)
    if input_channels is not None:
        model.build(shape)
    return model
