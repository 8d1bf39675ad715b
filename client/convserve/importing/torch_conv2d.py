"""PyTorch's words for a convolution, in Keras': names of parameters, order of a kernel's axes, amounts of padding.

PyTorch is never imported: a module is read by its attributes.

`padding=1` in PyTorch is one row and column of zeros on every side. Keras' "same" pads as much as the output's size
needs, and with strides of 2 that is often one at the end only. So PyTorch's amounts become explicit ones.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from convserve.errors import FieldViolation, InvalidConfigurationError, InvalidWeightsError, short_repr
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import FLOAT_DTYPES, Array

_KERAS_NAMES = {"stride": "strides", "dilation": "dilation_rate"}


def keras_parameters(words: Mapping[str, Any]) -> dict[str, Any]:
    """Returns PyTorch's parameters of a convolution as Keras'; Keras' own are left as they are.

    Args:
        words: `stride`, `padding`, `dilation`, `groups` and `padding_mode` as torch.nn.Conv2d takes them, or
            parameters of Conv2D.

    Raises:
        InvalidConfigurationError: If one is given in both wordings, or pads with something else than zeros.
    """
    found: dict[str, Any] = {}
    for name, value in words.items():
        if name == "padding_mode":
            if value != "zeros":
                text = f"Expected 'zeros', which is what a Conv2D pads with. Received padding_mode={short_repr(value)}."
                raise InvalidConfigurationError(FieldViolation(name, text))
            continue
        keras_name = _KERAS_NAMES.get(name, name)
        if keras_name in found:
            text = f"Expected {keras_name} once. Received it in PyTorch's wording too."
            raise InvalidConfigurationError(FieldViolation(keras_name, text))
        found[keras_name] = keras_padding(value) if name == "padding" else value
    return found


def keras_padding(padding: Any) -> Any:
    """Returns ((top, bottom), (left, right)) for PyTorch's integer or pair; no padding is "valid".

    Anything else, such as a word or amounts for all four sides, is left for Conv2D to check.
    """
    try:
        height = width = operator.index(padding)
    except TypeError:
        try:
            height, width = (operator.index(each) for each in padding)
        except (TypeError, ValueError):
            return padding
    return "valid" if height == width == 0 else ((height, height), (width, width))


def keras_kernel(weight: Array) -> Array:
    """Returns a kernel (height, width, in / groups, out) for PyTorch's weight (out, in / groups, height, width)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def layer_from_torch(module: Any) -> Layer:
    """Returns a `torch.nn.Conv2d` as a Layer that computes the same, in the dtype of the module's weights.

    Its inputs and outputs have their channels last, as is Keras' default: pass `x.transpose(0, 2, 3, 1)`.

    Raises:
        InvalidConfigurationError: If it pads with something else than zeros, or strides and dilates at once.
        InvalidWeightsError: If it is no Conv2d.
    """
    try:
        weight = module.weight
        suitable = len(weight.shape) == 4 and not module.transposed
    except (AttributeError, TypeError, RuntimeError):  # RuntimeError: a lazy module's weight before the first call
        suitable = False
    if not suitable:
        text = f"Expected a torch.nn.Conv2d. Received {type(module).__name__}."
        raise InvalidWeightsError(FieldViolation("kernel", text))
    kernel, dtype = _numpy(weight)
    bias = None if module.bias is None else _numpy(module.bias)[0]
    words = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    parameters = {"data_format": "channels_last", "dtype": dtype, **keras_parameters(words)}
    kernel = keras_kernel(kernel)
    config = Conv2D(int(kernel.shape[3]), kernel.shape[:2], use_bias=bias is not None, **parameters)
    return Layer(config, kernel, bias)


def _numpy(tensor: Any) -> tuple[Array, str]:
    """Returns a tensor's elements, and the name of its dtype."""
    held = tensor.detach().cpu()
    dtype = str(held.dtype).removeprefix("torch.")
    if dtype not in FLOAT_DTYPES:
        text = f"Expected weights of dtype {', '.join(FLOAT_DTYPES)}. Received {dtype}."
        raise InvalidWeightsError(FieldViolation("kernel", text))
    # PyTorch gives numpy no bfloat16; as float32 nothing is lost.
    return np.asarray((held.float() if dtype == "bfloat16" else held).numpy()), dtype
