"""Layers that tell by their outputs which of them computed."""

from __future__ import annotations

import numpy as np

from convserve import Conv2D, Layer

ONES = np.ones((1, 5, 5, 3), "f4")
_CONFIG = Conv2D(4, 3, use_bias=False, data_format="channels_last", dtype="float32")


def numbered(number: int) -> Layer:
    """Returns a layer whose outputs for ones are 27 times its number."""
    return Layer(_CONFIG, np.full((3, 3, 3, 4), number, "f4"))


def is_of(y: np.ndarray, number: int) -> bool:
    """Returns whether that layer's output for ones is this."""
    return bool((y == 27 * number).all())
