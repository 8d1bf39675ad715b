"""safetensors files: a JSON head that says where each tensor's bytes are, and the bytes. Nothing in one can be run.

Read and written here rather than with the package of that name: only the tensors that are wanted are read, bfloat16
needs no ml_dtypes, and a client needs no further package.

    8 bytes        the head's length, little-endian
    the head       {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [BEGIN, END]}, ..., "__metadata__": {...}}
    the elements   little-endian, row-major; offsets count from here
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convserve.bfloat16 import float32_of_bits
from convserve.tensor import Array, Shape, itemsize

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_DTYPES = {dtype: name for name, dtype in _NAMES.items()}
_LONGEST_HEAD = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        shape: Its shape.
        dtype: Its dtype's name, the format's own where it is no floating-point type that layers have.
        begin: Where its elements begin in the file.
        nbytes: How many bytes they take.
    """

    shape: Shape
    dtype: str
    begin: int
    nbytes: int

    def read(self, file: Path) -> Array:
        """Returns the elements; bfloat16 as float32, without loss.

        Raises:
            ValueError: If the file is shorter than it was.
        """
        with file.open("rb") as opened:
            opened.seek(self.begin)
            data = opened.read(self.nbytes)
        if self.dtype == "bfloat16":
            return float32_of_bits(np.frombuffer(data, "<u2")).reshape(self.shape)
        return np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


@dataclass(frozen=True)
class Head:
    """What a file's head says.

    Attributes:
        tensors: The tensors by name.
        metadata: Texts by name.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_head(file: Path) -> Head:
    """Returns the head of a file.

    Raises:
        ValueError: If it is no safetensors file, or a tensor lies outside of it.
        OSError: If it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEAD, size - 8):
            raise ValueError(f"its head is said to have {length} bytes")
        found = json.loads(opened.read(length))
    if not isinstance(found, dict):
        raise ValueError("its head is not a JSON object")
    metadata = found.pop("__metadata__", {})
    tensors = {name: _tensor(name, said, 8 + length, size) for name, said in found.items()}
    return Head(tensors, {str(name): str(text) for name, text in metadata.items()})


def write(file: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes arrays of floating-point numbers.

    Raises:
        OSError: If the file cannot be written.
    """
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        said = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
        head[name], end = said, end + array.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # so that the elements are aligned
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            opened.write(np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view("u1").data)


def _tensor(name: str, said: Any, start: int, size: int) -> StoredTensor:
    shape, (begin, end) = said["shape"], said["data_offsets"]
    numbers = (*shape, begin, end)
    if not all(isinstance(each, int) and each >= 0 for each in numbers) or not begin <= end <= size - start:
        raise ValueError(f"the tensor {name!r:.100} lies outside of the file")
    dtype = _NAMES.get(said["dtype"], str(said["dtype"]))
    if said["dtype"] in _NAMES and math.prod(shape) * itemsize(dtype) != end - begin:
        raise ValueError(f"the tensor {name!r:.100} has another size than its shape says")
    return StoredTensor(tuple(shape), dtype, start + begin, end - begin)
