"""An engine of numpy's that computes what the definition of a convolution says, in float64."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from convserve import Conv2D, Device, Layer, Losses
from convserve.layers.plan import kernel_shape
from convserve.tensors.codec import numpy_dtype
from convserve_server.engine_api import Computed


def convolved(of: Layer, x: Any) -> Any:
    """Returns a layer's output before its activation, in float64."""
    config, kernel = of.config, np.asarray(of.kernel, "f8")
    x = np.asarray(x, "f8")
    if config.data_format == "channels_first":
        x = x.transpose(0, 2, 3, 1)
    x = np.pad(x, ((0, 0), *padding(config, x.shape[1:3]), (0, 0)))
    (kh, kw), (sh, sw), (dh, dw) = config.kernel_size, config.strides, config.dilation_rate
    height, width = (x.shape[1] - (kh - 1) * dh - 1) // sh + 1, (x.shape[2] - (kw - 1) * dw - 1) // sw + 1
    groups = config.groups
    per_group = x.shape[3] // groups, config.filters // groups
    output = np.zeros((len(x), height, width, config.filters))
    for row, column in itertools.product(range(kh), range(kw)):
        seen = x[:, row * dh :, column * dw :][:, : (height - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw]
        for group in range(groups):
            filters = slice(group * per_group[1], (group + 1) * per_group[1])
            channels = seen[..., group * per_group[0] : (group + 1) * per_group[0]]
            output[..., filters] += channels @ kernel[row, column][:, filters]
    if of.bias is not None:
        output += np.asarray(of.bias, "f8")
    return output.transpose(0, 3, 1, 2) if config.data_format == "channels_first" else output


def padding(config: Conv2D, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns [(top, bottom), (left, right)]; for "same" the fewest that give ceil(size / stride), the odd one last."""
    if config.padding == "valid":
        return [(0, 0), (0, 0)]
    if config.padding != "same":
        return list(config.padding)
    amounts = []
    for length, kernel, stride, dilation in zip(
        size, config.kernel_size, config.strides, config.dilation_rate, strict=True
    ):
        positions = (length + stride - 1) // stride
        missing = max(0, (positions - 1) * stride + dilation * (kernel - 1) + 1 - length)
        amounts.append((missing // 2, missing - missing // 2))
    return amounts


def activated(config: Conv2D, x: Any) -> Any:
    """Returns the activation's result, for those that tests of this engine use."""
    name, axis = config.activation.keras_name, getattr(config.activation, "axis", None)
    if name == "linear":
        return x
    if name in ("relu", "relu6"):
        return np.clip(x, 0, 6 if name == "relu6" else None)
    if name in ("elu", "leaky_relu"):
        return np.where(x > 0, x, np.expm1(x) if name == "elu" else 0.2 * x)
    if name == "glu":
        gated, gate = np.split(x, 2, axis=axis)
        return gated * (gate > 0)  # a gate that keeps integers integers
    if name == "tanh":
        return np.tanh(x)
    assert name == "softmax", f"{name}: this test needs TensorFlow"
    power = np.exp(x - x.max(axis=axis, keepdims=True))
    return power / power.sum(axis=axis, keepdims=True)


def penalty(regularizer: Any, x: Any) -> float | None:
    """Returns what an l1 or l2 regularizer says of a tensor."""
    if regularizer is None:
        return None
    return float(sum(factor * (np.abs(x) ** int(name[1])).sum() for name, factor in vars(regularizer).items()))


def weight(initializer: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Returns weights that an initializer's parameters decide: Keras' for constants, other random numbers else."""
    constants = {"zeros": 0, "ones": 1, "constant": initializer.parameters.get("value")}
    if initializer.keras_name in constants:
        return np.full(shape, constants[initializer.keras_name], numpy_dtype(dtype))
    normal = np.random.default_rng([initializer.seed, len(shape)]).normal(size=shape)
    return (normal * 0.1).astype(numpy_dtype(dtype))


_GEOMETRY = (
    *("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups", "activation"),
    *("use_bias", "kernel_regularizer", "bias_regularizer", "activity_regularizer", "dtype", "trainable"),
)
"""What layers of one trace have in common."""


class NumpyEngine:
    """An Engine; gates of glu are steps."""

    versions = {"tensorflow": "none", "keras": "none"}  # noqa: RUF012 (a protocol's)
    tf32 = onednn = False
    devices = (Device("cpu:0", "cpu", ""),)

    def __init__(self) -> None:
        self._shapes: dict[Hashable, set[Hashable]] = {}

    @property
    def traces(self) -> int:
        return len(self._shapes)

    @property
    def warm_shapes(self) -> int:
        return sum(map(len, self._shapes.values()))

    def device_memory(self) -> dict[str, int]:
        return {}

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        seeded = config.with_seed(random.SystemRandom().randrange(2**31))
        kernel = weight(seeded.kernel_initializer, kernel_shape(seeded, input_channels), seeded.variable_dtype)
        if not seeded.use_bias:
            return Layer(seeded, kernel)
        return Layer(seeded, kernel, weight(seeded.bias_initializer, (seeded.filters,), seeded.variable_dtype))

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        config, weights, losses = layer.config, {"kernel": layer.kernel, "bias": layer.bias}, {}
        for name, value in weights.items():
            constraint = getattr(config, f"{name}_constraint")
            if value is None:
                continue
            if constraint is not None:
                assert constraint.keras_name == "non_neg", f"{constraint}: this test needs TensorFlow"
                weights[name] = np.maximum(value, 0)
            losses[name] = penalty(getattr(config, f"{name}_regularizer"), weights[name])
        return Layer(config, weights["kernel"], weights["bias"]), Losses(**losses if config.trainable else {})

    def convolve(
        self, layers: Sequence[Layer], inputs: Sequence[Any], output_dtype: str, device: int, *_: Any
    ) -> Computed:
        x, losses = np.concatenate(inputs), []
        geometry = tuple(getattr(layer.config, name) for layer in layers for name in _GEOMETRY)
        seen = self._shapes.setdefault((geometry, x.dtype.str, output_dtype), set())
        warm = x.shape in seen
        seen.add(x.shape)
        for layer in layers:
            config = layer.config
            x = activated(config, convolved(layer, x)).astype(numpy_dtype(config.compute_dtype))
            activity = penalty(config.activity_regularizer, np.asarray(x, "f8"))
            kept = config.trainable
            losses.append(
                Losses(
                    kernel=penalty(config.kernel_regularizer, layer.kernel) if kept else None,
                    bias=penalty(config.bias_regularizer, layer.bias) if kept and layer.bias is not None else None,
                    activity=None if activity is None else activity / len(x),
                )
            )
        output = x.astype(numpy_dtype(output_dtype))
        return Computed(output, tuple(losses), self.devices[device].name, warm=warm, batch_size=len(x))
