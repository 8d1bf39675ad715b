"""Layers of one weight for each channel, which is their number, for tests of what keeps them."""

from __future__ import annotations

import numpy as np

from convserve import Conv2D, Layer
from convserve_server.layer_store.store import LayerStore

_CONFIG = Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32")


def layer(number: int, channels: int = 1) -> Layer:
    return Layer(_CONFIG, np.full((1, 1, channels, 1), number, "f4"))


def key(number: int) -> bytes:
    return layer(number).digest


def number_under(store: LayerStore, name: str) -> float:
    """Returns the number of the layer to which a name leads."""
    return float(store.layer(name).kernel.flat[0])
