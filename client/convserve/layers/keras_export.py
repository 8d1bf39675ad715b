"""Layers as Keras' own: what leaves convserve computes without it. It needs Keras, and any of Keras' backends."""

from __future__ import annotations

from typing import Any

from convserve.errors import MissingDependencyError
from convserve.layers.layer import Layer


def to_keras(layer: Layer) -> Any:
    """Returns a `keras.layers.Conv2D` with the layer's configuration and weights.

    Keras has no explicit padding, so a layer that has it becomes a `keras.Sequential` of a `ZeroPadding2D` and a
    Conv2D, which computes the same. A layer without weights becomes one that is not built.

    Args:
        layer: The layer. Its configuration's `input_shape` is left out, because Keras wants it in an Input instead.

    Raises:
        InvalidConfigurationError: For an activation with parameters that Keras cannot serialize.
        MissingDependencyError: Without Keras.
    """
    try:
        import keras
    except ImportError as error:
        raise MissingDependencyError(
            "A Keras layer needs Keras: pip install keras, and one of its backends."
        ) from error
    padding = layer.config.padding
    explicit = not isinstance(padding, str)
    config = layer.config.replace(input_shape=None, **({"padding": "valid"} if explicit else {}))
    conv2d = keras.layers.Conv2D.from_config(config.to_keras_config())
    channels = layer.input_channels
    if channels is not None:
        sides = (None, None, channels) if config.data_format == "channels_last" else (channels, None, None)
        conv2d.build((None, *sides))
        conv2d.set_weights([layer.kernel] if layer.bias is None else [layer.kernel, layer.bias])
    if not explicit:
        return conv2d
    pad = keras.layers.ZeroPadding2D(padding, data_format=config.data_format, dtype=config.dtype)
    model = keras.Sequential([pad, conv2d], name=config.name)
    if channels is not None:
        model.build((None, *sides))
    return model
