"""The tensors of a request, in the protocol's datatypes: which there are, and where their elements are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from convserve.errors import InvalidArgumentError, InvalidRequestError, InvalidTensorError, short_repr
from convserve.tensors.codec import INPUT_DTYPES, Array, Shape, checked_shape, itemsize, numpy_dtype
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import InferRequest

DATATYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int8": "INT8",
}
"""The protocol's name of each dtype."""

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}

_REGION, _SIZE, _OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
_CONTENTS = {"float32": "fp32_contents", "float64": "fp64_contents", "uint8": "uint_contents", "int8": "int_contents"}
_Parameters = Mapping[str, messages.InferParameter]


class Place(NamedTuple):
    """Where in shared memory a tensor is."""

    region: str  # its name
    offset: int  # where it begins there, in bytes
    size: int  # how many bytes the caller reserved for it
    field: str  # what to call it in an error


class Input(NamedTuple):
    """An input, or where it is."""

    shape: Shape
    dtype: str
    elements: Array | Place


def read_inputs(request: InferRequest, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Input]:
    """Returns the inputs by their names.

    Raises InvalidRequestError if one is missing, unknown or there twice, or elements are missing or left over, or
    InvalidTensorError if one contradicts itself.
    """
    inputs: dict[str, Input] = {}
    raw = iter(request.raw)
    for tensor in request.message.inputs:
        if tensor.name in inputs or tensor.name not in (*required, *optional):
            raise _wrong_inputs(request, required, optional)
        inputs[tensor.name] = _input(tensor, raw, f"inputs.{tensor.name}")
    if any(name not in inputs for name in required):
        raise _wrong_inputs(request, required, optional)
    if next(raw, None) is not None:
        raise _wrong_raw(f"{len(request.raw)}, which is too many")
    return inputs


def read_output_place(request: InferRequest, name: str) -> Place | None:
    """Returns where the caller wants the only output, or None for the response. Raises InvalidRequestError."""
    outputs = request.message.outputs
    if not outputs:
        return None
    if len(outputs) != 1 or outputs[0].name != name:
        received = ", ".join(short_repr(output.name) for output in outputs[:8])
        raise InvalidRequestError.for_field("outputs", f"{name} alone", received)
    parameters = outputs[0].parameters
    if "classification" in parameters:
        field = f"outputs.{name}.parameters.classification"
        raise InvalidRequestError.for_field(field, "none, as the output is no list of classes", "one")
    return _place(parameters, f"outputs.{name}")


def dtype_of(datatype: str, field: str, allowed: Sequence[str] = INPUT_DTYPES) -> str:
    """Returns the dtype that the protocol calls so. Raises InvalidTensorError if it is none of the `allowed` ones."""
    dtype = _DTYPES.get(datatype)
    if dtype is None or dtype not in allowed:
        names = ", ".join(DATATYPES[name] for name in allowed)
        raise InvalidTensorError.for_field(field, f"one of {names}", short_repr(datatype))
    return dtype


def _input(tensor: messages.ModelInferRequest.InferInputTensor, raw: Iterator[memoryview | bytes], field: str) -> Input:
    dtype = dtype_of(tensor.datatype, f"{field}.datatype")
    shape = checked_shape(tensor.shape, f"{field}.shape")
    size = math.prod(shape) * itemsize(dtype)
    place = _place(tensor.parameters, field)
    if place is not None:
        _check_size(place.size, size, shape, dtype, field)
        return Input(shape, dtype, place)
    if tensor.HasField("contents"):
        return Input(shape, dtype, _typed(tensor.contents, shape, dtype, field))
    data = next(raw, None)
    if data is None:
        raise _wrong_raw("too few")
    _check_size(len(data), size, shape, dtype, field)
    return Input(shape, dtype, np.frombuffer(data, numpy_dtype(dtype)).reshape(shape))


def _typed(contents: messages.InferTensorContents, shape: Shape, dtype: str, field: str) -> Array:
    name, field = _CONTENTS.get(dtype), f"{field}.contents"
    if name is None:
        expected = f"{DATATYPES[dtype]} in raw_input_contents, as contents have no field for it"
        raise InvalidTensorError.for_field(field, expected, "contents")
    values = getattr(contents, name)
    if len(values) != math.prod(shape):
        expected = f"{math.prod(shape)} elements in {name}, as shape {shape} needs"
        raise InvalidTensorError.for_field(field, expected, len(values))
    if dtype in ("float32", "float64"):
        return np.fromiter(values, numpy_dtype(dtype), len(values)).reshape(shape)
    integers, bounds = np.fromiter(values, np.int64, len(values)), np.iinfo(dtype)
    if integers.min() < bounds.min or integers.max() > bounds.max:
        expected = f"{DATATYPES[dtype]}, from {bounds.min} to {bounds.max}"
        raise InvalidTensorError.for_field(field, expected, "other integers")
    return integers.astype(dtype).reshape(shape)


def _place(parameters: _Parameters, field: str) -> Place | None:
    if _REGION not in parameters:
        return None
    offset, size = (_integer(parameters, name, field) for name in (_OFFSET, _SIZE))
    return Place(parameters[_REGION].string_param, offset, size, field)


def _integer(parameters: _Parameters, name: str, field: str) -> int:
    """Returns an integer, which is 0 if it is not there."""
    if name not in parameters:
        return 0
    choice = parameters[name].WhichOneof("parameter_choice")
    value = getattr(parameters[name], choice) if choice in ("int64_param", "uint64_param") else -1
    if value < 0:
        received = "another" if choice == "int64_param" else choice
        raise InvalidRequestError.for_field(f"{field}.parameters.{name}", "an integer of at least 0", received)
    return int(value)


def _check_size(received: int, expected: int, shape: Shape, dtype: str, field: str) -> None:
    if received != expected:
        needed = f"{expected} bytes, as shape {list(shape)} and datatype {DATATYPES[dtype]} need"
        raise InvalidTensorError.for_field(field, needed, f"{received} bytes")


def _wrong_inputs(request: InferRequest, required: Sequence[str], optional: Sequence[str]) -> InvalidArgumentError:
    names = ", ".join((*required, *(f"{name} if need be" for name in optional)))
    received = ", ".join(short_repr(tensor.name) for tensor in request.message.inputs[:8]) or "none"
    return InvalidRequestError.for_field("inputs", f"{names}, each once", received)


def _wrong_raw(received: str) -> InvalidArgumentError:
    expected = "the elements of each input that is neither in shared memory nor has contents"
    return InvalidRequestError.for_field("raw_input_contents", expected, received)
