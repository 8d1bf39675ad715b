"""safetensors files, by the package of that name. Nothing in one can be run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from convserve.bfloat16 import float32_of_bits
from convserve.errors import MissingDependencyError
from convserve.tensor import Array, Shape, itemsize

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # the format's names


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype's name, the format's own where it is no floating-point type that layers have.
    """

    name: str
    shape: Shape
    dtype: str

    @property
    def nbytes(self) -> int:
        """How many bytes it takes, of a floating-point type that layers have."""
        return math.prod(self.shape) * itemsize(self.dtype)

    def read(self, file: Path) -> Array:
        """Returns the elements; bfloat16, which the package has no numpy form of, as float32 without loss.

        Raises:
            ValueError: If the file is broken.
        """
        safetensors = _package()
        try:
            if self.dtype == "bfloat16":
                found = dict(safetensors.deserialize(file.read_bytes()))[self.name]
                return float32_of_bits(np.frombuffer(found["data"], "<u2")).reshape(self.shape)
            with safetensors.safe_open(file, framework="numpy") as opened:
                return np.asarray(opened.get_tensor(self.name))
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error


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
        ValueError: If it is no safetensors file.
        OSError: If it cannot be read.
        MissingDependencyError: Without safetensors.
    """
    safetensors = _package()
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            tensors = {}
            for name in opened.keys():  # noqa: SIM118 (no dictionary)
                said = opened.get_slice(name)
                dtype = str(said.get_dtype())
                tensors[name] = StoredTensor(name, tuple(said.get_shape()), _DTYPES.get(dtype, dtype))
            return Head(tensors, dict(opened.metadata() or {}))
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


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
