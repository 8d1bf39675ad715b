"""PyTorch's words for a convolution, in Keras': names of parameters, order of a kernel's axes, amounts of padding.

`padding=1` in PyTorch is one row and column of zeros on every side. Keras' "same" pads as much as the output's size
needs, and with strides of 2 that is often one at the end only. So PyTorch's amounts become explicit ones.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from convserve.errors import InvalidConfigurationError, short_repr
from convserve.tensors.codec import Array

_KERAS_NAMES = {"stride": "strides", "dilation": "dilation_rate"}


def keras_parameters(words: Mapping[str, Any]) -> dict[str, Any]:
    """Returns torch.nn.Conv2d's parameters as Conv2D's, which are left as they are.

    Raises:
        InvalidConfigurationError: If one is given in both wordings, or pads with something else than zeros.
    """
    parameters: dict[str, Any] = {}
    for name, value in words.items():
        if name == "padding_mode":
            if value != "zeros":
                expected = "'zeros', which is what a Conv2D pads with"
                raise InvalidConfigurationError.for_field(name, expected, f"padding_mode={short_repr(value)}")
            continue
        keras_name = _KERAS_NAMES.get(name, name)
        if keras_name in parameters:
            received = "it in PyTorch's wording too"
            raise InvalidConfigurationError.for_field(keras_name, f"{keras_name} once", received)
        parameters[keras_name] = _keras_padding(value) if name == "padding" else value
    return parameters


def _keras_padding(padding: Any) -> Any:
    """Returns ((top, bottom), (left, right)) for an integer or a pair; anything else is left for Conv2D to check."""
    try:
        height = width = operator.index(padding)
    except TypeError:
        try:
            height, width = map(operator.index, padding)
        except (TypeError, ValueError):
            return padding
    return "valid" if height == width == 0 else ((height, height), (width, width))


def keras_kernel(weight: Array) -> Array:
    """Returns a kernel (height, width, in / groups, out) for PyTorch's weight (out, in / groups, height, width)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
