"""Tensors in pieces, as streams carry them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convserve.tensors.codec import Array

ACCEPTED = ("convserve-start", "accepted")
"""The initial metadata with which a server accepts a stream's start."""

PIECE_BYTES = 2**21


def cut(array: Array, piece_bytes: int) -> Iterator[memoryview]:
    """Yields an array's elements, C-contiguous, in pieces."""
    elements = array.reshape(-1).view(np.uint8).data
    for begin in range(0, len(elements), piece_bytes):
        yield elements[begin : begin + piece_bytes]
