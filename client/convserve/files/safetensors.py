"""safetensors files, by the package of that name. Nothing in one can be run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple

import numpy as np

from convserve.errors import needing
from convserve.tensors.codec import Array, Shape, float32_of_bfloat16_bits, itemsize

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""The dtypes that layers have, by the format's names."""


class StoredTensor(NamedTuple):
    """A tensor as a file's header describes it."""

    shape: Shape
    dtype: str  # the format's own name where it is no floating-point type that layers have

    @property
    def nbytes(self) -> int:
        """How many bytes it takes, of a floating-point type that layers have."""
        return math.prod(self.shape) * itemsize(self.dtype)


class SafetensorsFile:
    """A file whose `tensors` are read one by one; its `metadata` are texts by name.

    Raises ValueError for another file, OSError for one that cannot be read, or MissingDependencyError.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.tensors: dict[str, StoredTensor] = {}
        with _package() as safetensors, safetensors.safe_open(file, framework="numpy") as opened:
            self.metadata: dict[str, str] = dict(opened.metadata() or {})
            for name in opened.keys():  # noqa: SIM118 (no dictionary)
                tensor = opened.get_slice(name)
                dtype = str(tensor.get_dtype())
                self.tensors[name] = StoredTensor(tuple(tensor.get_shape()), DTYPES.get(dtype, dtype))

    def read(self, name: str) -> Array:
        """Returns a tensor's elements; bfloat16, of which NumPy has no type, as float32 without loss."""
        tensor = self.tensors[name]
        if tensor.dtype == "bfloat16":
            return float32_of_bfloat16_bits(np.frombuffer(self._bfloat16[name], "<u2")).reshape(tensor.shape)
        with _package() as safetensors, safetensors.safe_open(self._file, framework="numpy") as opened:
            return np.asarray(opened.get_tensor(name))

    @cached_property
    def _bfloat16(self) -> dict[str, bytes]:
        """The bits of every bfloat16 tensor, read at once: the package gives single ones only as arrays."""
        with _package() as safetensors:
            tensors = safetensors.deserialize(self._file.read_bytes())
        return {name: tensor["data"] for name, tensor in tensors if tensor["dtype"] == "BF16"}


def write(file: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes arrays of floating-point numbers."""
    with _package():
        from safetensors.numpy import save

    file.write(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(metadata)))


@contextmanager
def _package() -> Iterator[ModuleType]:
    """Yields the package; its own errors in the block become ValueErrors."""
    with needing("safetensors files need the package safetensors: pip install 'convserve[import]'."):
        import safetensors
    try:
        yield safetensors
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
