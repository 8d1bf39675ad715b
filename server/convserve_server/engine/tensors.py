"""Tensors without a copy, and function calls by their op: TensorFlow promises neither, and test_tensors.py fails first.

bfloat16, which neither DLPack nor Python's buffers carry, travels as uint16 and is reinterpreted on either side.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from convserve.tensors.codec import Array, name_of, numpy_dtype
from convserve_server.memory.aligned import aligned


def direct_call(function: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """Returns a ConcreteFunction that returns a list, called by the op of a function call: in half of its own time.

    Not promised: that the op takes a ConcreteFunction, and captured inputs behind the arguments.
    """
    captured, types = function.captured_inputs, [output.dtype for output in function.outputs]
    return lambda arguments: tf.raw_ops.StatefulPartitionedCall(args=[*arguments, *captured], Tout=types, f=function)


def free_functions() -> None:
    """Frees the memory of functions that nobody has any more; calls of the others, which may go on, start anew once.

    Not promised: that TensorFlow keeps of each function what its first call prepared, until this call.
    """
    gc.collect()  # they are circles
    context.context().clear_kernel_cache()


def carrier(dtype: str) -> str:
    """Returns the name of the dtype as which elements of a named dtype travel."""
    return "uint16" if dtype == "bfloat16" else dtype


def to_tensor(array: Array, on_gpu: bool) -> Any:
    """Returns an array as a tensor of its carrier dtype.

    The array is C-contiguous and little-endian. On a CPU the tensor is its own memory if that is aligned: it must not
    change, nor be handed to others, as long as the tensor lives. Else it is on the GPU of the `tf.device` around.
    """
    if name_of(array) == "bfloat16":
        array = array.view(np.uint16)
    return tf.constant(array) if on_gpu else _tensor_on(aligned(array))


def weight_to_tensor(array: Array, on_gpu: bool) -> Any:
    """Returns a weight as a tensor of its own dtype; as `to_tensor`."""
    tensor = to_tensor(array, on_gpu)
    return tf.bitcast(tensor, tf.bfloat16) if name_of(array) == "bfloat16" else tensor


def to_array(tensor: Any, dtype: str, on_gpu: bool) -> Array:
    """Returns a tensor of a carrier dtype as an array of the named dtype, on a CPU as read-only one on its memory."""
    # Not promised: that a tensor on a CPU is a buffer.
    array = tensor.numpy() if on_gpu else np.asarray(memoryview(tensor))
    return array.view(numpy_dtype(dtype)) if carrier(dtype) != dtype else array


class _Writable:
    """An array's memory, as one that may be written to: DLPack of before 1.0 has no other. Nobody does."""

    def __init__(self, array: Array) -> None:
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self._array = array  # which keeps the memory


def _tensor_on(array: Array) -> Any:
    # Not promised: that TensorFlow makes no copy, and no more of DLPack than that it is experimental.
    writable = array if array.flags.writeable else np.asarray(_Writable(array))
    return tf.experimental.dlpack.from_dlpack(writable.__dlpack__())
