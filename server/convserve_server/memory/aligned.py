"""Arrays as TensorFlow computes on them without a copy of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convserve.tensors.aligned import ALIGNMENT, address_of, aligned_empty
from convserve.tensors.codec import Array


def aligned(array: Array) -> Array:
    """Returns an array itself if it is contiguous and in aligned memory, else a copy that is."""
    if array.flags.c_contiguous and not address_of(array) % ALIGNMENT:
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
