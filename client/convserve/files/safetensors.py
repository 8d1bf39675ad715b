"""safetensors files, by the package of that name. Nothing in one can be run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np

from convserve.errors import MissingDependencyError
from convserve.tensors.codec import Array, Shape, float32_of_bfloat16_bits, itemsize

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""The dtypes that layers have, by the format's names."""


@dataclass(frozen=True)
class StoredTensor:
    """What a file's head says of a tensor.

    Attributes:
        shape: Its shape.
        dtype: Its dtype's name, the format's own where it is no floating-point type that layers have.
    """

    shape: Shape
    dtype: str

    @property
    def nbytes(self) -> int:
        """How many bytes it takes, of a floating-point type that layers have."""
        return math.prod(self.shape) * itemsize(self.dtype)


class SafetensorsFile:
    """A file whose tensors are read one by one.

    Attributes:
        tensors: The tensors by name.
        metadata: Texts by name.
    """

    def __init__(self, file: Path) -> None:
        """Reads the head.

        Raises:
            ValueError: If it is no safetensors file.
            OSError: If it cannot be read.
            MissingDependencyError: Without safetensors.
        """
        self._file = file
        self.tensors: dict[str, StoredTensor] = {}
        safetensors = _package()
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                self.metadata: dict[str, str] = dict(opened.metadata() or {})
                for name in opened.keys():  # noqa: SIM118 (no dictionary)
                    said = opened.get_slice(name)
                    dtype = str(said.get_dtype())
                    self.tensors[name] = StoredTensor(tuple(said.get_shape()), DTYPES.get(dtype, dtype))
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error

    def read(self, name: str) -> Array:
        """Returns a tensor's elements; bfloat16, of which numpy has no type, as float32 without loss.

        Raises:
            ValueError: If the file is broken.
        """
        tensor = self.tensors[name]
        if tensor.dtype == "bfloat16":
            return float32_of_bfloat16_bits(np.frombuffer(self._bfloat16[name], "<u2")).reshape(tensor.shape)
        safetensors = _package()
        try:
            with safetensors.safe_open(self._file, framework="numpy") as opened:
                return np.asarray(opened.get_tensor(name))
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error

    @cached_property
    def _bfloat16(self) -> dict[str, bytes]:
        """The bits of every bfloat16 tensor, read at once: the package gives single ones only as arrays."""
        safetensors = _package()
        try:
            found = safetensors.deserialize(self._file.read_bytes())
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
        return {name: each["data"] for name, each in found if each["dtype"] == "BF16"}


def write(file: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes arrays of floating-point numbers.

    Raises:
        OSError: If the file cannot be written.
        MissingDependencyError: Without safetensors.
    """
    _package()
    from safetensors.numpy import save

    file.write_bytes(save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, dict(metadata)))


def _package() -> ModuleType:
    try:
        import safetensors
    except ImportError as error:
        text = "safetensors files need the package safetensors: pip install 'convserve[import]'."
        raise MissingDependencyError(text) from error
    return safetensors
