"""Arrays by name, as archives and state dictionaries have them, put together to layers.

`NAME.kernel` has Keras' and JAX' order of axes (height, width, in / groups, out); `NAME.weight` PyTorch's (out,
in / groups, height, width), or MLX' (out, height, width, in / groups) where a file says that it is MLX'. Either may
have a `NAME.bias`; a layer with other parts, such as scales of quantized weights, computes something else and is
skipped.
Names may be a variable's of TensorFlow, with a "/" and ":0". Such a file says nothing of strides, padding, dilation and
groups: they come from the caller, in Keras' or PyTorch's wording, and are Conv2D's defaults otherwise, PyTorch's too.
"""

from __future__ import annotations

import fnmatch
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from convserve.errors import InvalidArgumentError, InvalidConfigurationError, InvalidRequestError, short_repr
from convserve.importing.imported import Contents, Skipped
from convserve.importing.untrusted import refusal
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape

_KINDS = ("kernel", "weight", "bias")
_HWIO, _OF_OIHW, _OF_OHWI = (0, 1, 2, 3), (2, 3, 1, 0), (1, 2, 3, 0)
_AXES = {
    None: {"kernel": _HWIO, "weight": _OF_OIHW},
    "np": {"kernel": _HWIO, "weight": _OF_OIHW},
    "pt": {"weight": _OF_OIHW},
    "mlx": {"weight": _OF_OHWI},
    "tf": {"kernel": _HWIO},
    "flax": {"kernel": _HWIO},
    "jax": {"kernel": _HWIO},
    "keras": {"kernel": _HWIO},
}
"""What brings axes to HWIO, by what a file says of its format, and the last part of an array's name."""
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

    parameters: Mapping[str, Any]  # for every layer
    by_layer: Mapping[str, Mapping[str, Any] | None]  # by pattern of names, a later one wins; None leaves a layer out

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


def contents(
    model: str,
    arrays: Sequence[NamedArray],
    geometry: Geometry,
    *,
    file_format: str | None = None,
    odd: Mapping[str, InvalidArgumentError] = MappingProxyType({}),
) -> Contents:
    """Returns the layers that a file's arrays make; in errors the field begins with the layer's name.

    `model` stands for the model's name, `file_format` is what the file says of its format, `odd` what is wrong with
    further arrays, by name. Raises InvalidRequestError for an unknown format, or InvalidConfigurationError if a
    parameter of `geometry` is wrong.
    """
    if file_format not in _AXES:
        known = ", ".join(filter(None, _AXES))
        raise refusal(f"a file whose metadata has no format, or one of {known}", f"format={short_repr(file_format)}")
    result, layers = Contents(model), _by_layer(arrays, len(arrays) + len(odd) == 1)
    geometry.check_all_used([name or model for name in layers])
    used = {array.name for parts in layers.values() for kind in _KINDS for array in parts.get(kind, ())}
    spoilt = {}  # by layer, a part that is not known
    for name, error in odd.items():
        result.skip(name, "array", error)
        layer, kind = _split(name)
        if layer or kind in _KINDS:
            spoilt[layer] = name
    for array in arrays:
        if array.name not in used:
            result.skipped.append(Skipped(array.name, f"array of rank {len(array.shape)}", _why_unused(array)))
    for name, parts in layers.items():
        parameters = geometry.of(name or model)
        kernels = [(kind, array) for kind in ("kernel", "weight") for array in parts.get(kind, ())]
        reason = "left out, as was asked" if parameters is None else _unsuitable(parts)
        if name in spoilt:
            reason = reason or f"{short_repr(spoilt[name])}, which belongs to it, is no array of numbers"
        kind, array = kernels[0]
        if not reason and kind not in _AXES[file_format]:
            reason = f"in a file of format {file_format!r}, the order of axes of a {kind} is not known"
        if parameters is None or reason:
            result.skipped.append(Skipped(name, "array of rank 4", reason))
            continue
        biases = parts.get("bias", ())
        if len(kernels) > 1 or len(biases) > 1:
            received = " and ".join(f"a {kind}" for kind, _ in [*kernels, *(("bias", bias) for bias in biases[1:])])
            error = refusal("one kernel for each layer, and one bias", f"{received} for {short_repr(name)}")
            result.skip(name, "array of rank 4", error)
            continue
        kernel = array.read().transpose(_AXES[file_format][kind])
        bias = biases[0].read() if biases else None
        try:
            config = Conv2D(int(kernel.shape[3]), kernel.shape[:2], use_bias=bias is not None, **parameters)
        except InvalidConfigurationError as error:
            raise error.under(f"{name or model}.") from None  # the caller's parameter
        try:
            result.layers.append((name, Layer(config, kernel, bias)))
        except InvalidArgumentError as error:
            result.skip(name, "array of rank 4", error.under(f"{name or model}."))
    return result


def _by_layer(arrays: Sequence[NamedArray], is_alone: bool) -> dict[str, dict[str, list[NamedArray]]]:
    """Returns the kernels in a file, each with what belongs to the same layer, by the last part of its name."""
    layers: dict[str, dict[str, list[NamedArray]]] = {}
    for array in arrays:
        layer, kind = _split(array.name)
        if len(array.shape) == 4 and kind in ("kernel", "weight"):
            layers.setdefault(layer, {}).setdefault(kind, []).append(array)
        elif len(array.shape) == 4 and is_alone:
            layers[array.name] = {"kernel": [array]}  # a file's only array may have any name
    for array in arrays:
        layer, kind = _split(array.name)
        if layer in layers and (kind == "bias" or (layer and kind not in _KINDS)):
            layers[layer].setdefault(kind, []).append(array)
    return layers


def _why_unused(array: NamedArray) -> str:
    if len(array.shape) != 4 or _split(array.name)[1] in _KINDS:
        return "not the kernel of a Conv2D"
    endings = ".kernel, /kernel, .weight or /weight"
    return f"its name does not say in which order its axes are: name kernels so that they end in {endings}"


def _unsuitable(parts: Mapping[str, Sequence[NamedArray]]) -> str:
    """Returns why arrays are no Conv2D's, or nothing."""
    for array in (array for kind in _KINDS for array in parts.get(kind, ())):
        if array.dtype not in FLOAT_DTYPES:
            return f"dtype {array.dtype}; a layer's weights are floating-point numbers"
        if 0 in array.shape:
            return f"{short_repr(array.name)} of shape {array.shape} has no elements"
    others = sorted(set(parts) - set(_KINDS))
    if others:
        return f"it has more than a kernel and a bias: {', '.join(others)}"
    if "weight" in parts and "bias" in parts:
        shape, biases = parts["weight"][0].shape, parts["bias"][0].shape
        if biases != shape[:1]:
            return f"weight {shape} with bias {biases}: a transposed convolution's, or no convolution's"
    return ""


def _split(name: str) -> tuple[str, str]:
    """Returns ("conv1", "kernel") for "conv1.kernel", "conv1/kernel" and TensorFlow's "conv1/kernel:0"."""
    plain = name.removesuffix(":0")
    cut = max(plain.rfind("."), plain.rfind("/"))
    return plain[: max(cut, 0)], plain[cut + 1 :]


def _conv2d_parameters(given: Any, where: str) -> dict[str, Any]:
    """Returns torch.nn.Conv2d's parameters as Conv2D's, and those of Conv2D as they are.

    Raises InvalidConfigurationError, for `where` and the name, for one that is unknown, is given in both wordings, or
    pads with something else than zeros.
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
