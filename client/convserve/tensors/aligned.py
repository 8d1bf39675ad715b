"""Memory that begins where vector instructions like it, which TensorFlow takes without a copy of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convserve.tensors.codec import Array

ALIGNMENT = 64
"""Bytes; what TensorFlow asks of its tensors."""


def aligned_empty(shape: Sequence[int], dtype: Any) -> Array:
    """Returns an uninitialized array in aligned memory."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, -address_of(memory) % ALIGNMENT)


def address_of(array: Array) -> int:
    """Returns where an array's elements begin; `ctypes.data` takes ten times as long."""
    return int(array.__array_interface__["data"][0])
