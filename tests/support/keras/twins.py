"""A layer of Keras' and a remote one with the same weights. It imports TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from convserve.keras import RemoteConv2D


def built_twins(target: str, *arguments: Any, size: int, **parameters: Any) -> tuple[Any, Any]:
    """Returns Keras' layer and ours, built for square images of 4 channels, with the same weights, none zero.

    `size` is the images' height and width; the rest are the parameters of a Conv2D.
    """
    original = keras.layers.Conv2D(*arguments, **parameters)
    remote = RemoteConv2D(*arguments, **parameters, server=target)
    rng = np.random.default_rng(1)
    for layer in (original, remote):
        channels_first = layer.data_format == "channels_first"
        layer.build((None, 4, size, size) if channels_first else (None, size, size, 4))
    weights = [rng.normal(scale=0.2, size=tuple(each.shape)) for each in original.weights]
    for layer in (original, remote):
        layer.set_weights(weights)
    return original, remote
