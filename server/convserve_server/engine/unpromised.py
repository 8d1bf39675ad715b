"""What the engine uses of TensorFlow and NumPy that neither promises, in one place; test_unpromised.py fails first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from convserve.tensors.codec import Array


class DirectCall:
    """A ConcreteFunction, called by the op of a function call: the function's own call takes twice as long.

    Not promised: that the op takes a ConcreteFunction, and captured inputs behind the arguments.
    """

    def __init__(self, function: Any) -> None:
        """Takes a ConcreteFunction that returns a list of tensors."""
        self._function = function
        self._captured = function.captured_inputs
        self._types = [output.dtype for output in function.outputs]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Returns what the function does."""
        return tf.raw_ops.StatefulPartitionedCall(  # type: ignore[no-any-return]
            args=[*arguments, *self._captured], Tout=self._types, f=self._function
        )


class _Writable:
    """An array's memory, as one that may be written to: DLPack of before 1.0 has no other. Nobody does."""

    def __init__(self, array: Array) -> None:
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self._array = array  # which keeps the memory


def tensor_on(array: Array) -> Any:
    """Returns a tensor on the CPU whose memory is an array's, which is C-contiguous and aligned.

    Not promised: that TensorFlow makes no copy, and no more of DLPack than that it is experimental.
    """
    writable = array if array.flags.writeable else np.asarray(_Writable(array))
    return tf.experimental.dlpack.from_dlpack(writable.__dlpack__())


def array_on(tensor: Any) -> Array:
    """Returns a read-only array on the memory of a tensor on the CPU.

    Not promised: that a tensor is a buffer, and that this is no copy.
    """
    return np.asarray(memoryview(tensor))
