"""Arrays by name, as archives and state dictionaries have them, put together to layers.

`NAME.kernel` has Keras' and JAX' order of axes (height, width, in / groups, out); `NAME.weight` PyTorch's (out,
in / groups, height, width), or MLX' (out, height, width, in / groups) where a file says that it is MLX'. Either may
have a `NAME.bias`; a layer with other parts, such as scales of quantized weights, computes something else and is
skipped.
Names may be a variable's of TensorFlow, with a "/" and ":0". Such a file says nothing of strides, padding, dilation and
groups: they come from the caller, in Keras' or PyTorch's wording. Where the caller does not say them either, a kernel
with PyTorch's or MLX' order of axes is skipped, unless it is 1x1 or defaults are asked for; others have the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from convserve.errors import InvalidArgumentError, InvalidWeightsError, short_repr
from convserve.importing.arrays.batch_norms import BatchNorms
from convserve.importing.arrays.geometry import Geometry, all_unsaid
from convserve.importing.arrays.named_array import NamedArray, split
from convserve.importing.imported import Contents, NotImportedError
from convserve.importing.untrusted import refusal
from convserve.tensors.codec import FLOAT_DTYPES

_KINDS = ("kernel", "weight", "bias")
_HWIO, _OF_OIHW, _OF_OHWI = (0, 1, 2, 3), (2, 3, 1, 0), (1, 2, 3, 0)
_AXES: dict[str | None, dict[str, tuple[int, ...]]] = {
    None: {"kernel": _HWIO, "weight": _OF_OIHW},
    "np": {"kernel": _HWIO, "weight": _OF_OIHW},
    "pt": {"weight": _OF_OIHW},
    "mlx": {"weight": _OF_OHWI},
    **{name: {"kernel": _HWIO} for name in ("tf", "flax", "jax", "keras")},
}
"""What brings axes to HWIO, by what a file says of its format, and the last part of an array's name."""


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
    parameter of `geometry` is wrong, or no layer is left because `geometry` does not say strides and padding.
    """
    if file_format not in _AXES:
        known = ", ".join(filter(None, _AXES))
        raise refusal(f"a file whose metadata has no format, or one of {known}", f"format={short_repr(file_format)}")
    result, layers = Contents(model), _by_layer(arrays, len(arrays) + len(odd) == 1)
    geometry.check_all_used([name or model for name in layers])
    norms = BatchNorms.among(arrays)
    spoilt = _skip_odd(result, odd)
    used = {array.name for parts in layers.values() for kind in _KINDS for array in parts.get(kind, ())}
    used |= norms.array_names
    for array in arrays:
        if array.name not in used:
            result.skip(array.name, f"array of rank {len(array.shape)}", _why_unused(array))
    unsaid = []
    for name, parts in layers.items():
        known_as, given = name or model, geometry.of(name or model)
        try:
            if given is None:
                raise NotImportedError("left out, as was asked")
            kernel, order = _kernel(name, parts, file_format, spoilt.get(name))
            # PyTorch's layers often have other strides and padding; arrays in Keras' order of axes are single kernels.
            shape = tuple(kernel.shape[axis] for axis in order)
            if order != _HWIO and (missing := geometry.unsaid(known_as, given, shape)):
                unsaid.append(known_as)
                raise missing
        except (NotImportedError, InvalidArgumentError) as error:
            result.skip(name, "array of rank 4", error)
            continue
        bias = parts["bias"][0].read() if "bias" in parts else None
        try:
            layer = given.layer(known_as, kernel.read().transpose(order), bias)
        except InvalidWeightsError as error:
            result.skip(name, "array of rank 4", error)
            continue
        if given.batch_norm is not None:
            layer = norms.fold(layer, known_as, given.batch_norm, given.epsilon)
        result.layers.append((name, layer))
        if assumed := given.assumed():
            result.assumed[name] = assumed
    result.skipped += norms.skipped()
    if unsaid and not result.layers:
        raise all_unsaid(unsaid)
    return result


def _skip_odd(result: Contents, odd: Mapping[str, InvalidArgumentError]) -> dict[str, str]:
    """Lists arrays that are none of numbers, and returns by layer one that belongs to it."""
    spoilt = {}
    for name, error in odd.items():
        result.skip(name, "array", error)
        layer, kind = split(name)
        if layer or kind in _KINDS:
            spoilt[layer] = name
    return spoilt


def _kernel(
    name: str, parts: Mapping[str, Sequence[NamedArray]], file_format: str | None, spoilt: str | None
) -> tuple[NamedArray, tuple[int, ...]]:
    """Returns a layer's kernel, and the order in which its axes are Keras'; `spoilt` names an array without numbers.

    Raises NotImportedError for arrays that are no Conv2D's, or InvalidRequestError for several kernels.
    """
    _check_suitable(parts, file_format, spoilt)
    kernels = [(kind, array) for kind in ("kernel", "weight") for array in parts.get(kind, ())]
    biases = parts.get("bias", ())
    if len(kernels) > 1 or len(biases) > 1:
        received = " and ".join(f"a {kind}" for kind, _ in [*kernels, *(("bias", bias) for bias in biases[1:])])
        raise refusal("one kernel for each layer, and one bias", f"{received} for {short_repr(name)}")
    kind, array = kernels[0]
    return array, _AXES[file_format][kind]


def _by_layer(arrays: Sequence[NamedArray], is_alone: bool) -> dict[str, dict[str, list[NamedArray]]]:
    """Returns the kernels in a file, each with what belongs to the same layer, by the last part of its name."""
    layers: dict[str, dict[str, list[NamedArray]]] = {}
    for array in arrays:
        layer, kind = split(array.name)
        if len(array.shape) == 4 and kind in ("kernel", "weight"):
            layers.setdefault(layer, {}).setdefault(kind, []).append(array)
        elif len(array.shape) == 4 and is_alone:
            layers[array.name] = {"kernel": [array]}  # a file's only array may have any name
    for array in arrays:
        layer, kind = split(array.name)
        if layer in layers and (kind == "bias" or (layer and kind not in _KINDS)):
            layers[layer].setdefault(kind, []).append(array)
    return layers


def _why_unused(array: NamedArray) -> str:
    if len(array.shape) != 4 or split(array.name)[1] in _KINDS:
        return "not the kernel of a Conv2D"
    endings = ".kernel, /kernel, .weight or /weight"
    return f"its name does not say in which order its axes are: name kernels so that they end in {endings}"


def _check_suitable(parts: Mapping[str, Sequence[NamedArray]], file_format: str | None, spoilt: str | None) -> None:
    """Raises NotImportedError for arrays that are no Conv2D's; `spoilt` names one that is no array of numbers."""
    for array in (array for kind in _KINDS for array in parts.get(kind, ())):
        if array.dtype not in FLOAT_DTYPES:
            raise NotImportedError(f"dtype {array.dtype}; a layer's weights are floating-point numbers")
        if 0 in array.shape:
            raise NotImportedError(f"{short_repr(array.name)} of shape {array.shape} has no elements")
    others = sorted(set(parts) - set(_KINDS))
    if others:
        raise NotImportedError(f"it has more than a kernel and a bias: {', '.join(others)}")
    if "weight" in parts and "bias" in parts:
        shape, biases = parts["weight"][0].shape, parts["bias"][0].shape
        if biases != shape[:1]:
            raise NotImportedError(
                f"weight {shape} with bias {biases}: a transposed convolution's, or no convolution's"
            )
    if spoilt is not None:
        raise NotImportedError(f"{short_repr(spoilt)}, which belongs to it, is no array of numbers")
    kind = "kernel" if "kernel" in parts else "weight"
    if kind not in _AXES[file_format]:
        raise NotImportedError(f"in a file of format {file_format!r}, the order of axes of a {kind} is not known")
