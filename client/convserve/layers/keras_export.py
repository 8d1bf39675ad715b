"""Layers as Keras' own: what leaves convserve computes without it. It needs Keras, and any of Keras' backends."""

from __future__ import annotations

from typing import Any

from convserve.errors import MissingDependencyError
from convserve.layers.conv2d import Conv2D
from convserve.tensors.codec import Array


def to_keras(config: Conv2D, kernel: Array | None, bias: Array | None, input_channels: int | None) -> Any:
    """Returns a `keras.layers.Conv2D` with a layer's configuration and weights.

    Keras has no explicit padding, so a layer that has it becomes a `keras.Sequential` of a `ZeroPadding2D` and a
    Conv2D, which computes the same. A layer without weights becomes one that is not built.

    The configuration's `input_shape` is left out, because Keras wants it in an Input instead.

    Raises:
        InvalidConfigurationError: For an activation with parameters that Keras cannot serialize.
        MissingDependencyError: Without Keras.
    """
    try:
        import keras
    except ImportError as error:
        text = "A Keras layer needs Keras: pip install keras, and one of its backends."
        raise MissingDependencyError(text) from error
    padding = config.padding
    explicit = not isinstance(padding, str)
    config = config.replace(input_shape=None, **({"padding": "valid"} if explicit else {}))
    conv2d = keras.layers.Conv2D.from_config(config.to_keras_config())
    if input_channels is not None:
        last = config.data_format == "channels_last"
        sides = (None, None, input_channels) if last else (input_channels, None, None)
        conv2d.build((None, *sides))
        conv2d.set_weights([kernel] if bias is None else [kernel, bias])
    if not explicit:
        return conv2d
    pad = keras.layers.ZeroPadding2D(padding, data_format=config.data_format, dtype=config.dtype)
    model = keras.Sequential([pad, conv2d], name=config.name)
    if input_channels is not None:
        model.build((None, *sides))
    return model
