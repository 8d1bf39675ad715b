"""Arrays by name, as archives and state dictionaries have them, put together to layers.

`NAME.kernel` has Keras' and JAX' order of axes (height, width, in / groups, out); `NAME.weight` PyTorch's (out,
in / groups, height, width). Either may have a `NAME.bias`. Such a file says nothing of strides, padding, dilation and
groups: they come from the caller, in Keras' or PyTorch's wording, and are Conv2D's defaults otherwise, PyTorch's too.
"""

from __future__ import annotations

import fnmatch
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidArgumentError, InvalidConfigurationError, InvalidRequestError, short_repr
from convserve.importing.imported import Contents, Skipped
from convserve.importing.untrusted import refusal
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape

_KINDS = ("kernel", "weight", "bias")
_FROM_WEIGHTS = ("filters", "kernel_size", "use_bias")
_PARAMETERS = (
    *(name for name in inspect.signature(Conv2D).parameters if name not in _FROM_WEIGHTS),
    *("stride", "dilation", "padding_mode"),
)
_KERAS_NAMES = {"stride": "strides", "dilation": "dilation_rate"}


@dataclass(frozen=True)
class NamedArray:
    """An array in a file, not read yet."""

    name: str
    shape: Shape
    dtype: str
    read: Callable[[], Array]


@dataclass(frozen=True)
class Geometry:
    """What a file of arrays does not say of its layers: parameters of Conv2D, or of torch.nn.Conv2d in its wording."""

    parameters: Mapping[str, Any]
    """For every layer."""
    by_layer: Mapping[str, Mapping[str, Any] | None]
    """By pattern of names, of which a later one wins; None leaves a layer out."""

    def check_none(self) -> None:
        """Raises InvalidRequestError if there is anything, for a file that has its layers' configurations."""
        if self.parameters or self.by_layer:
            given = ", ".join((*self.parameters, *self.by_layer))
            expected = "no parameters, as the file has the configuration of its layers"
            raise InvalidRequestError.for_field("config", expected, f"{given:.200}")

    def of(self, name: str) -> dict[str, Any] | None:
        """Returns Conv2D's parameters for a layer, or None if it is left out."""
        parameters: dict[str, Any] | None = _conv2d_parameters(self.parameters, "")
        for pattern, given in self.by_layer.items():
            if fnmatch.fnmatchcase(name, pattern):
                changed = None if given is None else _conv2d_parameters(given, f"{pattern}.")
                parameters = None if changed is None else (parameters or {}) | changed
        return parameters

    def check_all_used(self, names: Sequence[str]) -> None:
        """Raises InvalidConfigurationError if a pattern matches no name, as one with a typing error does."""
        for pattern in self.by_layer:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                expected = f"the name of a layer, or a pattern, out of {listed or 'none'}"
                raise InvalidConfigurationError.for_field("config", expected, short_repr(pattern))


def contents(model: str, arrays: Sequence[NamedArray], geometry: Geometry) -> Contents:
    """Returns the layers that a file's arrays make; in errors the field begins with the layer's name."""
    result, layers = Contents(model), _by_layer(arrays)
    geometry.check_all_used([name or model for name in layers])
    used = {array.name for parts in layers.values() for array in parts.values()}
    for array in arrays:
        if array.name not in used:
            kind = f"array of rank {len(array.shape)}"
            result.skipped.append(Skipped(array.name, kind, "not the kernel of a Conv2D"))
    for name, parts in layers.items():
        parameters, reason = geometry.of(name or model), _unsuitable(parts)
        if parameters is None or reason:
            result.skipped.append(Skipped(name, "array of rank 4", reason or "left out, as was asked"))
            continue
        kernel = parts["kernel"].read() if "kernel" in parts else parts["weight"].read().transpose(2, 3, 1, 0)
        bias = parts["bias"].read() if "bias" in parts else None
        try:
            config = Conv2D(int(kernel.shape[3]), kernel.shape[:2], use_bias=bias is not None, **parameters)
            result.layers.append((name, Layer(config, kernel, bias)))
        except InvalidArgumentError as error:
            raise error.under(f"{name or model}.") from None
    return result


def _by_layer(arrays: Sequence[NamedArray]) -> dict[str, dict[str, NamedArray]]:
    """Returns the kernels in a file, each with its bias, by the names of their layers."""
    layers: dict[str, dict[str, NamedArray]] = {}
    for array in arrays:
        layer, kind = _split(array.name)
        if len(array.shape) == 4 and (kind in ("kernel", "weight") or len(arrays) == 1):
            # A file's only array may have any name.
            name, kind = (layer, kind) if kind in ("kernel", "weight") else (array.name, "kernel")
            parts = layers.setdefault(name, {})
            if parts:
                raise refusal("one kernel for each layer", f"a kernel and a weight for {short_repr(name)}")
            parts[kind] = array
    for array in arrays:
        layer, kind = _split(array.name)
        if kind == "bias" and layer in layers:
            layers[layer]["bias"] = array
    return layers


def _unsuitable(parts: Mapping[str, NamedArray]) -> str:
    """Returns why arrays are no Conv2D's, or nothing."""
    for array in parts.values():
        if array.dtype not in FLOAT_DTYPES:
            return f"dtype {array.dtype}; a layer's weights are floating-point numbers"
    if "weight" in parts and "bias" in parts:
        shape, biases = parts["weight"].shape, parts["bias"].shape
        if biases != shape[:1]:
            return f"weight {shape} with bias {biases}: a transposed convolution's, or no convolution's"
    return ""


def _split(name: str) -> tuple[str, str]:
    """Returns ("conv1", "kernel") for "conv1.kernel" and "conv1/kernel"."""
    for separator in (".", "/"):
        layer, _, kind = name.rpartition(separator)
        if kind in _KINDS:
            return layer, kind
    return name, ""


def _conv2d_parameters(given: Any, where: str) -> dict[str, Any]:
    """Returns torch.nn.Conv2d's parameters as Conv2D's, and those of Conv2D as they are.

    Raises:
        InvalidConfigurationError: For `where` and a name that is unknown, given in both wordings, or pads with
            something else than zeros.
    """
    if not isinstance(given, Mapping):
        field = where.rstrip(".") or "config"
        raise InvalidConfigurationError.for_field(field, "parameters by name, or null", short_repr(given))
    parameters: dict[str, Any] = {}
    for name, value in given.items():
        keras_name = _KERAS_NAMES.get(str(name), str(name))
        if name not in _PARAMETERS:
            expected = f"one of {', '.join(_PARAMETERS)}"
            raise InvalidConfigurationError.for_field(f"{where}{name}", expected, short_repr(name))
        if keras_name in parameters:
            received = "it in PyTorch's wording too"
            raise InvalidConfigurationError.for_field(f"{where}{keras_name}", f"{keras_name} once", received)
        if name != "padding_mode":
            parameters[keras_name] = _keras_padding(value) if name == "padding" else value
        elif value != "zeros":
            expected = "'zeros', which is what a Conv2D pads with"
            raise InvalidConfigurationError.for_field(f"{where}{name}", expected, f"padding_mode={short_repr(value)}")
    return parameters


def _keras_padding(padding: Any) -> Any:
    """Returns ((top, bottom), (left, right)) for PyTorch's integer or pair; Conv2D checks anything else.

    `padding=1` in PyTorch is one row and column of zeros on every side. Keras' "same" pads as much as the output's size
    needs, and with strides of 2 that is often one at the end only. So PyTorch's amounts become explicit ones.
    """
    try:
        height = width = operator.index(padding)
    except TypeError:
        try:
            height, width = map(operator.index, padding)
        except (TypeError, ValueError):
            return padding
    return "valid" if height == width == 0 else ((height, height), (width, width))
