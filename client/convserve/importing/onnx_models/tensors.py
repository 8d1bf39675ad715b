"""The arrays of an ONNX model: in the file itself, or in files beside it, whose names the model gives."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from convserve.errors import InvalidWeightsError, short_repr
from convserve.importing.untrusted import Budget, check_file, refusal
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape, numpy_dtype

_NAMES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16", 6: "int32", 7: "int64", 9: "bool"}
"""Element types by ONNX' numbers: a layer's weights have the first four, sizes and switches the others."""
DTYPES = tuple(_NAMES.values())
_MOST_ELEMENTS = 2**59 - 1  # of 8 bytes, as many as a size can count


class Tensors:
    """Reads tensors of a model; each reading counts, however often one is read."""

    def __init__(self, file: Path, budget: Budget) -> None:
        self._folder = file.parent
        self._budget = budget
        self._files: dict[Path, int] = {}

    def shape(self, tensor: Any, field: str) -> Shape:
        """Returns the shape that a tensor says it has; raises InvalidWeightsError for one that no array can have."""
        shape = tuple(tensor.dims)
        # NumPy counts the elements without the dimensions of 0.
        if len(shape) > 8 or min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) > _MOST_ELEMENTS:
            expected = f"at most 8 dimensions, none of them below 0, and at most {_MOST_ELEMENTS} elements"
            raise InvalidWeightsError.for_field(field, expected, f"the dims {short_repr(shape)}")
        return shape

    def array(self, tensor: Any, field: str, allowed: Sequence[str] = FLOAT_DTYPES) -> Array:
        """Returns a tensor of these dtypes; raises InvalidWeightsError for any other, or a broken one."""
        shape = self.shape(tensor, field)
        dtype = _NAMES.get(tensor.data_type, "")
        if dtype not in allowed:
            expected = f"elements of {', '.join(allowed)}"
            raise InvalidWeightsError.for_field(field, expected, dtype_text(tensor.data_type))
        if tensor.HasField("segment"):
            raise InvalidWeightsError.for_field(field, "a tensor in one piece", "a segment of one")
        kind = numpy_dtype(dtype) if dtype in FLOAT_DTYPES else np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if tensor.data_location:
            data = self._external(tensor, field, size)
        else:
            from onnx.helper import tensor_dtype_to_field

            elements = getattr(tensor, tensor_dtype_to_field(tensor.data_type))
            stored = len(tensor.raw_data) if tensor.HasField("raw_data") else len(elements) * kind.itemsize
            if stored != size:
                expected = f"{size} bytes, as shape {short_repr(shape)} and {dtype} need"
                raise InvalidWeightsError.for_field(field, expected, f"{stored} bytes")
            self._budget.spend(size, f"the tensor {short_repr(tensor.name)}")
            if not tensor.HasField("raw_data"):
                return _typed(elements, dtype, kind).reshape(shape)
            data = tensor.raw_data
        return np.frombuffer(data, kind.newbyteorder("<")).reshape(shape)

    def _external(self, tensor: Any, field: str, size: int) -> bytes:
        """Returns a tensor's bytes out of the file that it names."""
        name = short_repr(tensor.name)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._beside(entries.get("location", ""), name)
        if path not in self._files:
            self._files[path] = path.stat().st_size
            self._budget.add(path)
        offset = _amount(entries.get("offset") or "0", name)
        length = _amount(entries.get("length") or str(max(0, self._files[path] - offset)), name)
        if length != size:
            expected = f"{size} bytes of external data, as its shape and dtype need"
            raise InvalidWeightsError.for_field(field, expected, f"{length} bytes")
        if offset + length > self._files[path]:
            expected = f"external data within the {self._files[path]} bytes of {short_repr(path.name)}"
            raise InvalidWeightsError.for_field(field, expected, f"{length} bytes from {offset} on")
        self._budget.spend(size, f"the tensor {name}")
        # The path has no links any more; one that has taken a file's place since is not followed.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as opened:
            opened.seek(offset)
            data = opened.read(length)
        if len(data) < length:
            raise OSError(f"{path} has become shorter")
        return data

    def _beside(self, location: str, name: str) -> Path:
        """Returns the file of external data: one inside the model's folder, whatever leads there."""
        expected = "external data in a file inside the model's folder, as a relative path without '..'"
        windows = PureWindowsPath(location)
        is_inside = not (PurePosixPath(location).is_absolute() or windows.anchor or ".." in windows.parts)
        if not location or not is_inside or "\0" in location:
            raise refusal(expected, f"the location {short_repr(location)} of {name}")
        folder = self._folder.resolve()
        try:
            path = (folder / location).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            advice = "the model's files belong into one folder, under the names that they were saved with"
            reason = getattr(error, "strerror", None) or error
            raise refusal("external data that can be read", f"{short_repr(location)}: {reason}; {advice}") from error
        if not path.is_relative_to(folder):
            raise refusal(expected, f"the location {short_repr(location)} of {name}, a link that leads out of it")
        check_file(path)
        return path


def dtype_text(number: int) -> str:
    """Returns what a tensor's elements are called."""
    from onnx import TensorProto

    try:
        return f"elements of {TensorProto.DataType.Name(number)}"
    except ValueError:
        return f"elements of the unknown type {number}"


def dtype_of(tensor: Any) -> str:
    """Returns the name of a tensor's dtype, or what it is called if no layer's weights can have it."""
    name = _NAMES.get(tensor.data_type, "")
    return name if name in FLOAT_DTYPES else dtype_text(tensor.data_type)


def _typed(elements: Any, dtype: str, kind: np.dtype[Any]) -> Array:
    """Returns elements that are not stored as bytes; types of 16 bits are there as those bits."""
    if dtype in ("float16", "bfloat16"):
        return (np.array(elements, np.int64) & 0xFFFF).astype("<u2").view(kind)
    return np.array(elements, kind)


def _amount(text: str, name: str) -> int:
    """Returns an offset or a length, which are decimal digits."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise refusal("external data with offset and length in bytes", f"{short_repr(text)} for {name}")
    return int(text)
