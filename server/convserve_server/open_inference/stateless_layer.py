"""The layer of the stateless model: its weights are inputs, its configuration the request's parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from convserve.errors import FieldViolation, InvalidRequestError, short_repr
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array
from convserve_server.open_inference.v2 import inference_service_pb2 as messages

OUTPUT_DTYPE = "output_dtype"
# What Triton's clients send beside a model's own parameters; none of it is about a convolution.
_OTHERS = {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", OUTPUT_DTYPE}
# Not what this server's user has in keras.json.
_DEFAULTS = {"data_format": "channels_last", "dtype": "float32"}

_MAX_JSON = 10_000
"""Far above what a configuration needs: what is read takes many times the memory of its text."""

Parameters = Mapping[str, messages.InferParameter]


def layer(parameters: Parameters, kernel: Array, bias: Array | None) -> Layer:
    """Returns the layer that a request describes.

    Args:
        parameters: The request's. Texts that begin with "[" or "{" are JSON, as in strides="[2, 1]".
        kernel: Array of shape (kernel height, kernel width, input channels / groups, filters).
        bias: Array of shape (filters,), or None.

    Raises:
        InvalidArgumentError: For wrong or unknown parameters, or weights that don't fit.
    """
    given = {
        name: _value(name, value)
        for name, value in parameters.items()
        if name not in _OTHERS and not name.startswith("triton_")
    }
    filters, kernel_size = given.pop("filters", None), given.pop("kernel_size", None)
    return Layer.from_arguments(filters, kernel_size, kernel, bias, None, _DEFAULTS | given)  # type: ignore[arg-type]


def output_dtype(parameters: Parameters) -> str | None:
    """Returns what is asked for as the output's datatype, or None."""
    return parameters[OUTPUT_DTYPE].string_param if OUTPUT_DTYPE in parameters else None


def _value(name: str, parameter: messages.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidRequestError(FieldViolation(f"parameters.{name}", "Expected a value. Received none."))
    value = getattr(parameter, kind)
    if kind != "string_param" or not value.startswith(("[", "{")):
        return value
    try:
        if len(value) > _MAX_JSON:
            raise ValueError
        return json.loads(value)
    except (ValueError, RecursionError):
        most = f"at most {_MAX_JSON} characters of JSON"
        text = f"Expected {most}, as it begins with {value[0]}. Received {short_repr(value)}."
        raise InvalidRequestError(FieldViolation(f"parameters.{name}", text)) from None
