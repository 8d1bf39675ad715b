"""The tensor codec: numpy arrays to the contract's Tensor and back, with the checks that bytes from a stranger need."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.errors import InvalidTensorError, MissingDependencyError, needing, short_repr
from convserve.v1 import tensor_pb2

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

FLOAT_DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Names of the element types that weights and outputs may have."""
INPUT_DTYPES = (*FLOAT_DTYPES, "uint8", "int8")
"""Names of the element types that an input may have."""

_NUMBER_OF_NAME: dict[str, Any] = {name: tensor_pb2.Dtype.Value(f"DTYPE_{name.upper()}") for name in INPUT_DTYPES}
_NAME_OF_NUMBER = {number: name for name, number in _NUMBER_OF_NAME.items()}
_NUMPY_DTYPE = {name: np.dtype(name).newbyteorder("<") for name in INPUT_DTYPES if name != "bfloat16"}
_NAME_OF_DTYPE = {dtype: name for name, dtype in _NUMPY_DTYPE.items()}


def itemsize(dtype: str) -> int:
    """Returns the bytes of one element of the named type."""
    return 2 if dtype == "bfloat16" else _NUMPY_DTYPE[dtype].itemsize


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Returns numpy's little-endian dtype of this name.

    Raises MissingDependencyError for bfloat16 without the package ml_dtypes.
    """
    return _bfloat16() if name == "bfloat16" else _NUMPY_DTYPE[name]


@cache
def _bfloat16() -> np.dtype[Any]:
    with needing(
        "bfloat16 arrays need the package ml_dtypes: pip install 'convserve[bfloat16]'. "
        "Or ask for the result as output_dtype='float32'."
    ):
        import ml_dtypes  # numpy alone has no bfloat16
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


with suppress(MissingDependencyError):
    _bfloat16()  # from now on numpy knows the name, too


def float32_of_bfloat16_bits(bits: Array) -> Array:
    """Returns the float32 numbers, exactly, that little-endian 16-bit integers mean as bfloat16."""
    return (bits.astype("<u4") << 16).view("<f4")


def name_of(array: Array) -> str:
    """Returns the name of an array's dtype, which numpy itself would put together anew every time."""
    return _NAME_OF_DTYPE.get(array.dtype) or array.dtype.name


def dtype_number(name: str | None) -> Any:
    """Returns the contract's number of a dtype's name; None is "not set"."""
    return tensor_pb2.DTYPE_UNSPECIFIED if name is None else _NUMBER_OF_NAME[name]


def dtype_name(number: int, field: str, allowed: Sequence[str] = INPUT_DTYPES) -> str:
    """Returns the name of a dtype that arrived as a number.

    Raises InvalidTensorError if the number is none of the `allowed` types'.
    """
    name = _NAME_OF_NUMBER.get(number)
    if name is None or name not in allowed:
        raise InvalidTensorError.for_field(field, f"a dtype out of {', '.join(allowed)}", name or number)
    return name


def standard_dtype(dtype: object, field: str, allowed: Sequence[str]) -> str:
    """Returns a dtype's name, given as a name, a numpy dtype or type, or another library's dtype with a name.

    Raises InvalidTensorError if it is none of the `allowed` types.
    """
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    if not isinstance(name, str) and dtype is not None:  # None would be numpy's default, float64
        try:
            name = np.dtype(dtype).name  # type: ignore[call-overload]
        except (TypeError, ValueError):
            name = None
    if name not in allowed:
        raise InvalidTensorError.for_field(field, f"a dtype out of {', '.join(allowed)}", short_repr(dtype))
    return str(name)


def standard_array(value: object, field: str, allowed: Sequence[str] = INPUT_DTYPES) -> Array:
    """Returns a caller's array as a C-contiguous, little-endian numpy array of an allowed dtype.

    It may be anything that `numpy.asarray` takes, and is copied only if its layout or byte order needs it.

    Raises InvalidTensorError for another dtype, a ragged list, a mask that hides elements, or a dimension of 0.
    """
    try:
        check_unmasked(value, field)
        array = np.asanyarray(value)
        check_unmasked(array, field)  # what another library's array, such as one of Dask's, becomes
        array = np.asarray(array)
    except InvalidTensorError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a PyTorch tensor that requires grad
        raise InvalidTensorError.for_field(field, "an array", f"{type(value).__name__}: {error}") from error
    name = name_of(array)
    if name not in allowed:
        expected = f"an array with dtype {', '.join(allowed)}"
        raise InvalidTensorError.for_field(field, expected, *_no_tensor(value, field, name, array.dtype.kind))
    checked_shape(array.shape, field)
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _no_tensor(value: object, field: str, name: str, kind: str) -> tuple[str, str]:
    """Returns what a value of another dtype is, and what makes an array that is taken of it."""
    if kind in "OSU" and not hasattr(value, "dtype"):
        if isinstance(value, str | bytes | os.PathLike):
            return short_repr(value), "Read the file first, for example with numpy.load or PIL.Image.open."
        hint = "Its .output is an array." if hasattr(value, "output") else ""
        return f"{type(value).__name__}: dtype {name}", hint
    way = ".astype('float32')" if hasattr(value, "astype") else "numpy.asarray(x, 'float32')"
    hint = "An input is sent as it is; weights are converted." if field == "input" else ""
    return f"dtype {name}; convert it first, for example with {way}", hint


def check_unmasked(value: object, field: str) -> None:
    """Raises InvalidTensorError for an array, or a list of arrays, with a mask, which its values alone would lose."""
    if type(value) is np.ndarray:  # by far most
        return
    if isinstance(value, list | tuple):
        for member in value:
            if type(member) not in (float, int):  # of which there may be very many
                check_unmasked(member, field)
        return
    mask: Any = getattr(value, "mask", None)  # NumPy's, Astropy's; pandas has a method, netCDF4 a flag, of this name
    if mask is not None and np.any(mask) and (isinstance(value, np.ma.MaskedArray) or np.shape(mask)):
        received = f"{type(value).__name__} with a mask; give it the values to compute with, such as by .filled(0)"
        raise InvalidTensorError.for_field(field, "an array without masked elements", received)


def checked_shape(shape: Sequence[int], field: str) -> Shape:
    """Returns a shape as a tuple.

    Raises InvalidTensorError if a dimension is no integer or below 1, or the shape has more than 2**63 - 1 elements.
    """
    try:
        if len(shape) > 8:
            received = f"{len(shape)}: shape {short_repr(tuple(shape[:9]))} and so on"
            raise InvalidTensorError.for_field(field, "at most 8 dimensions", received)
        given = tuple(shape)
        sizes = tuple(map(operator.index, given))
    except TypeError:
        raise InvalidTensorError.for_field(field, "a shape of integers", short_repr(shape)) from None
    if sizes and (min(sizes) < 1 or bool in map(type, given)):
        raise InvalidTensorError.for_field(field, "every dimension to be at least 1", f"shape {short_repr(given)}")
    if math.prod(sizes) >= 2**63:
        raise InvalidTensorError.for_field(field, "at most 2**63 - 1 elements", f"shape {short_repr(sizes)}")
    return sizes


def head_of(array: Array) -> tensor_pb2.Tensor:
    """Returns the message of an array that `standard_array` made, without its elements."""
    return tensor_pb2.Tensor(dtype=dtype_number(name_of(array)), shape=array.shape)


def encode(array: Array) -> tensor_pb2.Tensor:
    """Returns the message of an array that `standard_array` made."""
    message = head_of(array)
    message.data = array.tobytes()
    return message


def decode(
    message: tensor_pb2.Tensor,
    field: str,
    allowed: Sequence[str] = INPUT_DTYPES,
    *,
    elements: bytes | memoryview | None = None,
) -> Array:
    """Returns a tensor as a read-only array on its own bytes, or on `elements` that were kept out of the message.

    Raises:
        InvalidTensorError: If dtype, shape and byte count don't agree.
        MissingDependencyError: For bfloat16 without the package ml_dtypes.
    """
    data = message.data if elements is None else elements
    name = dtype_name(message.dtype, field, allowed)
    shape = checked_shape(message.shape, field)
    size = math.prod(shape) * itemsize(name)
    if len(data) != size:
        expected = f"{size} bytes, as shape {shape} and dtype {name} need"
        raise InvalidTensorError.for_field(field, expected, f"{len(data)} bytes")
    return np.frombuffer(data, dtype=numpy_dtype(name)).reshape(shape)
