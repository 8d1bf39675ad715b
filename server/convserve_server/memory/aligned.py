"""Memory that begins where vector instructions like it, on which TensorFlow computes without a copy of its own."""

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
    begin = -_address(memory) % ALIGNMENT
    array: Array = memory[begin : begin + size].view(dtype).reshape(shape)
    return array


def aligned(array: Array) -> Array:
    """Returns an array itself if it is contiguous and in aligned memory, else a copy that is."""
    if array.flags.c_contiguous and not _address(array) % ALIGNMENT:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def aligned_constant(array: Array) -> Array:
    """Returns an array itself if it is contiguous, aligned and read-only, else one that is: a view, or a copy."""
    constant = aligned(array)
    if constant.flags.writeable:
        constant = constant.view()
        constant.flags.writeable = False
    return constant


def joined(arrays: Sequence[Array]) -> Array:
    """Returns arrays of one dtype, which differ in their first dimension at most, as one in aligned memory."""
    rows = sum(array.shape[0] for array in arrays)
    joint = aligned_empty((rows, *arrays[0].shape[1:]), arrays[0].dtype)
    np.concatenate(arrays, out=joint)
    return joint


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
