"""numpy's arrays as TensorFlow's tensors and back: on a CPU without a copy, where the memory is aligned.

bfloat16, which neither DLPack nor Python's buffers carry, travels as uint16 and is reinterpreted on either side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from convserve.tensors.codec import Array, name_of, numpy_dtype
from convserve_server.engine.unpromised import array_on, tensor_on
from convserve_server.memory.aligned import aligned


def carrier(dtype: str) -> str:
    """Returns the name of the dtype as which elements of a named dtype travel."""
    return "uint16" if dtype == "bfloat16" else dtype


def to_tensor(array: Array, on_gpu: bool) -> Any:
    """Returns an array as a tensor of its carrier dtype.

    On a CPU the tensor is the array's own memory if that is aligned: it must not change, nor be handed to others, as
    long as the tensor lives.

    Args:
        array: C-contiguous and little-endian.
        on_gpu: Whether it is to be on the GPU of the `tf.device` around the call.
    """
    if name_of(array) == "bfloat16":
        array = array.view(np.uint16)
    return tf.constant(array) if on_gpu else tensor_on(aligned(array))


def weight_to_tensor(array: Array, on_gpu: bool) -> Any:
    """Returns a weight as a tensor of its own dtype; as `to_tensor`."""
    tensor = to_tensor(array, on_gpu)
    return tf.bitcast(tensor, tf.bfloat16) if name_of(array) == "bfloat16" else tensor


def to_array(tensor: Any, dtype: str, on_gpu: bool) -> Array:
    """Returns a tensor of a carrier dtype as an array of the named dtype, on a CPU as read-only one on its memory."""
    array = tensor.numpy() if on_gpu else array_on(tensor)
    return array.view(numpy_dtype(dtype)) if carrier(dtype) != dtype else array
