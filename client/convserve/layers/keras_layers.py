"""Keras' convolutions as Conv2Ds, and a Conv2D as Keras' own layer.

A depthwise convolution is a Conv2D with as many groups as channels, a separable one is two Conv2Ds in a row, and one of
rank 1 is a Conv2D over a height of 1. Each computes the same numbers from the same weights, in another shape.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from convserve.activations import Activation
from convserve.constraints import Constraint
from convserve.errors import (
    FieldViolation,
    InvalidConfigurationError,
    InvalidWeightsError,
    needing,
    short_repr,
)
from convserve.layers.arguments import INITIALIZERS, DataFormat, Pair, integer, positive_integer
from convserve.layers.conv2d import (
    BESIDE_OUTPUTS,
    Conv2D,
    check_keras_class,
    check_keras_config,
    keras_attributes,
)
from convserve.tensors.codec import Array

CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv1D", "DepthwiseConv1D", "SeparableConv1D")
"""The classes of `keras.layers` that Conv2Ds compute exactly."""

_PLAIN: tuple[str, ...] = ("kernel",)
_DEPTHWISE: tuple[str, ...] = ("depthwise",)
_SEPARABLE: tuple[str, ...] = ("depthwise", "pointwise")
_OF_A_KERNEL = ("initializer", "regularizer", "constraint")
_ALWAYS = (
    *("kernel_size", "strides", "padding", "data_format", "dilation_rate", "activation", "use_bias"),
    *("bias_initializer", "bias_regularizer", "activity_regularizer", "bias_constraint", "name", "trainable"),
)

Keras = TypeVar("Keras", Activation, Constraint)
Convolution = tuple[Conv2D, Array | None, Array | None]
"""A configuration with its kernel and its bias."""


def kernels(kind: str) -> tuple[str, ...]:
    """Returns what stands before `_initializer` and the like in a class' parameters, for each of its kernels."""
    return _SEPARABLE if kind.startswith("Separable") else _DEPTHWISE if kind.startswith("Depthwise") else _PLAIN


def parameters(kind: str) -> tuple[str, ...]:
    """Returns the parameters of one of CONVOLUTIONS, but for its dtype."""
    own = [f"{kernel}_{part}" for kernel in kernels(kind) for part in _OF_A_KERNEL]
    sizes = {"kernel": ("filters", "groups"), "depthwise": ("depth_multiplier",)}
    return (*sizes.get("-".join(kernels(kind)), ("filters", "depth_multiplier")), *_ALWAYS, *own)


def convolutions(
    kind: str, config: Mapping[str, Any], weights: Sequence[Array] | None, **left_out: Collection[str]
) -> list[Convolution]:
    """Returns a layer of Keras' as one Conv2D, or as two in a row where it is separable, each with its weights.

    Those of rank 1 take and return (batch, 1, width, channels), or (batch, channels, 1, width): the height is what
    `x[:, None]`, or `x[:, :, None]`, adds.

    Args:
        kind: One of CONVOLUTIONS.
        config: What the layer's `get_config` returns, or Keras' own objects by the same names.
        weights: Its kernels and its bias, in the order of `get_weights()`, or None where it has none yet.
        **left_out: `optional` and `dispensable` parameters, as `Conv2D.from_parameters` takes them.

    Raises:
        InvalidConfigurationError: For what has no counterpart; the fields are those of the layer's class.
        InvalidWeightsError: If weights don't fit.
    """
    *arrays, bias = _of_rank_4(kind, weights)
    kernel = arrays[0]
    configs = configurations(kind, config, None if kernel is None else int(kernel.shape[2]), **left_out)
    if kernel is not None and kernels(kind) != _PLAIN:
        multiplier = config.get("depth_multiplier", 1)
        if kernel.shape[3] != multiplier:
            field = "kernel" if kernels(kind) == _DEPTHWISE else "depthwise_kernel"
            expected = f"shape kernel_size + (input channels, {multiplier}), as depth_multiplier={multiplier} says"
            raise InvalidWeightsError.for_field(field, expected, f"shape {kernel.shape}")
        arrays[0] = kernel.reshape(*kernel.shape[:2], 1, -1)
    biases = [*[None] * (len(configs) - 1), bias]  # of a separable one's two, the last has it
    return list(zip(configs, arrays, biases, strict=True))


def configurations(
    kind: str, config: Mapping[str, Any], channels: int | None, **left_out: Collection[str]
) -> list[Conv2D]:
    """Returns the configurations of `convolutions`; `channels` are those of the input, None if they are not known.

    Raises InvalidConfigurationError.
    """
    if kind not in CONVOLUTIONS:
        raise InvalidConfigurationError.for_field("layer", f"one of {', '.join(CONVOLUTIONS)}", kind, _hint(kind))
    given = _known(kind, config)
    is_causal = kind in ("Conv1D", "SeparableConv1D") and str(given.get("padding")).lower() == "causal"
    if is_causal:
        given["padding"] = "valid"
    if kind.endswith("1D"):
        if not isinstance(given.get("padding", "valid"), str):
            received = f"padding={short_repr(given['padding'])}"
            raise InvalidConfigurationError.for_field("padding", f"a word, as keras.layers.{kind} has it", received)
        given |= {name: _beside_height(given[name], name) for name in _PAIRS if name in given}

    def configuration(kernel: str, **changed: Any) -> Conv2D:
        return _configuration(kind, kernel, given | changed, left_out)

    if kernels(kind) == _PLAIN:
        first, *others = [configuration("kernel")]
    else:
        first, *others = _by_channel(kind, given, channels, configuration)
    if is_causal:
        width = first.dilation_rate[1] * (first.kernel_size[1] - 1)
        first = first.replace(padding=((0, 0), (width, 0)))
    return [first, *others]


def _known(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a class out of a configuration, and refuses what is none of them."""
    allowed = {*parameters(kind), "dtype", "input_shape"}
    if kernels(kind) != _PLAIN:  # Keras 2 derives them from Conv, and so writes what they don't have
        allowed |= {f"kernel_{part}" for part in _OF_A_KERNEL}
        allowed |= {"groups"} if config.get("groups") in (1, None) else set()
    check_keras_config(config, allowed, kind)
    return {name: value for name, value in config.items() if name in (*parameters(kind), "dtype")}


def of_keras_layer(layer: Any) -> list[Convolution]:
    """Returns what `convolutions` does for a layer of Keras' itself, with its weights if it is built.

    Raises as `convolutions`, and InvalidConfigurationError for a subclass, which may compute something else.
    """
    kind = check_keras_class(layer, CONVOLUTIONS, _hint(type(layer).__name__))
    config = keras_attributes(layer, parameters(kind))
    if not getattr(layer, "built", False):
        return convolutions(kind, config, None)
    # Attributes rather than `get_weights()`: with LoRA the kernel is the sum that Keras computes with.
    names = [f"{kernel}_kernel" for kernel in kernels(kind)]
    arrays = [layer.kernel if len(names) == 1 and hasattr(layer, "kernel") else getattr(layer, name) for name in names]
    weights = [np.asarray(array) for array in (*arrays, *((layer.bias,) if layer.use_bias else ()))]
    return convolutions(kind, config, weights, optional=INITIALIZERS, dispensable=BESIDE_OUTPUTS)


def advice(kind: str) -> str:
    """Returns what to do with a class of Keras' that no Conv2D computes, or nothing where that is not known."""
    if kind in ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"):
        return "a transposed convolution spreads its input, which no Conv2D does: compute it locally"
    if kind == "Conv3D":
        return "a volume has one direction more than a Conv2D has: compute it locally"
    if kind.startswith("ConvLSTM"):
        return "its state goes from step to step, which no Conv2D's does: compute it locally"
    if kind.startswith("LocallyConnected"):
        return "it has other weights at each place, which no Conv2D has: compute it locally"
    if kind == "Dense":
        return "not a convolution, but over (batch, 1, 1, channels) Layer(Conv2D(units, 1), kernel[None, None], bias)"
    return ""


def _hint(kind: str) -> str:
    """Returns the same as a sentence."""
    text = advice(kind)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


_PAIRS = ("kernel_size", "strides", "dilation_rate")


def _beside_height(value: Any, field: str) -> Pair:
    """Returns (1, width) for an integer, or for a list of one; Conv2D checks how large it is."""
    try:
        return 1, integer(value)
    except TypeError:
        try:
            (width,) = map(integer, value)
        except (TypeError, ValueError):
            expected = "an integer greater than 0, or a tuple or list of one"
            raise InvalidConfigurationError.for_field(field, expected, f"{field}={short_repr(value)}") from None
    return 1, width


def _of_rank_4(kind: str, weights: Sequence[Array] | None) -> tuple[Array | None, ...]:
    """Returns each kernel, of rank 4, and the bias; None for each that there is not."""
    names = ["kernel"] if kernels(kind) == _PLAIN else [f"{kernel}_kernel" for kernel in kernels(kind)]
    if weights is None:
        return (None,) * (len(names) + 1)
    if not 0 <= len(weights) - len(names) <= 1:
        expected = f"{' and '.join(names)}, and a bias or none"
        raise InvalidWeightsError.for_field("weights", expected, f"{len(weights)} arrays")
    arrays = [np.asarray(weight) for weight in weights]
    bias = arrays.pop() if len(arrays) > len(names) else None
    rank = 3 if kind.endswith("1D") else 4
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != rank or 0 in array.shape:
            raise InvalidWeightsError.for_field(name, f"{rank} dimensions, none of them 0", f"shape {array.shape}")
    return (*(array if rank == 4 else array[None] for array in arrays), bias)


def _configuration(kind: str, kernel: str, given: Mapping[str, Any], left_out: Mapping[str, Collection[str]]) -> Conv2D:
    """Returns a configuration of which the kernel's parameters have Keras' name for that kernel, in errors too."""
    names = {f"{kernel}_{part}": f"kernel_{part}" for part in _OF_A_KERNEL}
    others = {f"{each}_{part}" for each in ("kernel", *_SEPARABLE) for part in _OF_A_KERNEL} | {"depth_multiplier"}
    kept = {names.get(name, name): value for name, value in given.items() if name in names or name not in others}
    try:
        config = Conv2D.from_parameters(kept, **left_out)
        if not kind.endswith("1D"):
            return config
        return config.replace(
            kernel_constraint=_constraint_at_height(config.kernel_constraint),
            activation=activation_at_height(config.activation, config.data_format),
        )
    except InvalidConfigurationError as error:
        raise InvalidConfigurationError(
            *(FieldViolation(_renamed(wrong.field, kernel), wrong.description) for wrong in error.violations)
        ) from None


def _renamed(field: str, kernel: str) -> str:
    name, *rest = field.split(".", 1)
    part = name.removeprefix("kernel_")
    return ".".join((f"{kernel}_{part}" if part in _OF_A_KERNEL else name, *rest))


def _by_channel(
    kind: str, given: Mapping[str, Any], channels: int | None, configuration: Callable[..., Conv2D]
) -> list[Conv2D]:
    """Returns a depthwise convolution, and for a separable one the 1x1 convolution after it."""
    if channels is None:
        hint = "Call it once, or layer.build(input_shape), and pass it again."
        expected = f"a built {kind}, as it has a group for each channel of its input"
        raise InvalidConfigurationError.for_field("layer", expected, "one whose input is not known yet", hint)
    multiplier = positive_integer(given.get("depth_multiplier", 1), "depth_multiplier")
    changed: dict[str, Any] = {"filters": channels * multiplier, "groups": channels}
    if kernels(kind) == _SEPARABLE:
        changed |= {"use_bias": False, "activation": None, "activity_regularizer": None, **_named(given, "depthwise")}
        changed |= {"bias_initializer": "zeros", "bias_regularizer": None, "bias_constraint": None}
    config = configuration("depthwise", **changed)
    constraint = _with_axes_of_groups(config.kernel_constraint, channels, multiplier)
    if constraint is None and config.kernel_constraint is not None:
        text = "depthwise_constraint: left out, as no constraint of a Conv2D has its axes. Outputs are the same."
        warnings.warn(text, stacklevel=5)
    config = config.replace(kernel_constraint=constraint)
    if kernels(kind) == _DEPTHWISE:
        return [config]
    window = {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid", "groups": 1}
    return [config, configuration("pointwise", **window, **_named(given, "pointwise"))]


def _named(given: Mapping[str, Any], part: str) -> dict[str, str]:
    name = given.get("name")
    return {"name": f"{name}_{part}"} if isinstance(name, str) and name else {}


def _with_axes_of_groups(constraint: Constraint | None, channels: int, multiplier: int) -> Constraint | None:
    """Returns a constraint of a kernel (height, width, channels, multiplier), for (height, width, 1, filters)."""
    axes = getattr(constraint, "axis", None)
    if constraint is None or axes is None:
        return constraint
    wanted = {axis % 4 for axis in axes}
    longer = {axis for axis, size in ((2, channels), (3, multiplier)) if size > 1}
    if wanted & longer not in (set(), longer):
        return None  # a norm over some of the filters
    return _with_axis(constraint, (*sorted(wanted & {0, 1}), 3 if wanted & longer else 2))


def _constraint_at_height(constraint: Constraint | None) -> Constraint | None:
    """Returns a constraint of a kernel of rank 3, for the same one with a height of 1."""
    axes = getattr(constraint, "axis", None)
    if constraint is None or axes is None:
        return constraint
    return _with_axis(constraint, tuple(axis + 1 if axis >= 0 else axis for axis in axes))


def activation_at_height(activation: Activation, data_format: DataFormat) -> Activation:
    """Returns an activation of tensors of rank 3, for the same ones with a height of 1.

    Raises InvalidConfigurationError for an axis that a tensor of rank 3 does not have.
    """
    axis = getattr(activation, "axis", None)
    if axis is None:
        return activation
    last = data_format == "channels_last"
    moved = {1: 2, 2: 3, -1: -1, -2: -2} if last else {1: 1, 2: 3, -1: -1, -2: -3}
    if axis not in moved:
        expected = "an axis of an output (batch, width, channels) but the first"
        raise InvalidConfigurationError.for_field("activation.axis", expected, f"axis={axis}")
    return _with_axis(activation, moved[axis])


def _with_axis(value: Keras, axis: int | tuple[int, ...]) -> Keras:
    return dataclasses.replace(value, axis=axis)  # type: ignore[call-arg]


def to_keras(config: Conv2D, kernel: Array | None, bias: Array | None, input_channels: int | None) -> Any:
    """Returns a `keras.layers.Conv2D` with a layer's configuration and weights.

    Keras has no explicit padding, so a layer that has it becomes a `keras.Sequential` of a `ZeroPadding2D` and a
    Conv2D, which computes the same. A layer without weights becomes one that is not built. The configuration's
    `input_shape` is left out, because Keras wants it in an Input instead.

    Raises InvalidConfigurationError as `Conv2D.to_keras_config`, and for strides together with a dilation_rate, which
    no layer of Keras' has, or MissingDependencyError without Keras.
    """
    with needing("A Keras layer needs Keras: pip install keras, and one of its backends."):
        import keras
    if config.strides_and_dilates:
        expected = "strides or dilation_rate of 1, as Keras has no layer in which both are above 1"
        received = f"strides={config.strides} and dilation_rate={config.dilation_rate}"
        raise InvalidConfigurationError.for_field("strides", expected, received)
    padding = config.padding
    config = config.replace(input_shape=None, padding=padding if isinstance(padding, str) else "valid")
    conv2d = keras.layers.Conv2D.from_config(config.to_keras_config())
    last = config.data_format == "channels_last"
    shape = (None, None, None, input_channels) if last else (None, input_channels, None, None)
    if input_channels is not None:
        conv2d.build(shape)
        conv2d.set_weights([kernel] if bias is None else [kernel, bias])
    if isinstance(padding, str):
        return conv2d
    pad = keras.layers.ZeroPadding2D(padding, data_format=config.data_format, dtype=config.dtype)
    model = keras.Sequential([pad, conv2d], name=config.name)
    if input_channels is not None:
        model.build(shape)
    return model
