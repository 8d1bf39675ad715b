"""An engine of numpy's that computes what the definition of a convolution says, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from convserve import Conv2D, Device, Layer, Losses
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
    groups, per_group = config.groups, x.shape[3] // config.groups
    found = np.zeros((len(x), height, width, config.filters))
    for row, column in itertools.product(range(kh), range(kw)):
        seen = x[:, row * dh :, column * dw :][:, : (height - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw]
        seen = seen.reshape(len(x), height, width, groups, per_group)
        taps = kernel[row, column].reshape(per_group, groups, -1)
        found += np.einsum("bhwgc,cgf->bhwgf", seen, taps).reshape(found.shape)
    if of.bias is not None:
        found += np.asarray(of.bias, "f8")
    return found.transpose(0, 3, 1, 2) if config.data_format == "channels_first" else found


def padding(config: Conv2D, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns [(top, bottom), (left, right)]; for "same" the fewest that give ceil(size / stride), the odd one last."""
    if config.padding == "valid":
        return [(0, 0), (0, 0)]
    if config.padding != "same":
        return list(config.padding)
    found = []
    for length, kernel, stride, dilation in zip(
        size, config.kernel_size, config.strides, config.dilation_rate, strict=True
    ):
        places = (length + stride - 1) // stride
        missing = max(0, (places - 1) * stride + dilation * (kernel - 1) + 1 - length)
        found.append((missing // 2, missing - missing // 2))
    return found


def activated(config: Conv2D, x: Any) -> Any:
    """Returns the activation's result, for those that tests of this engine use."""
    activation = config.activation
    if activation.keras_name == "linear":
        return x
    if activation.keras_name == "relu":
        return np.maximum(x, 0)
    if activation.keras_name == "glu":
        gated, gate = np.split(x, 2, axis=activation.axis)
        return gated * (gate > 0)  # a gate that keeps integers integers
    assert activation.keras_name == "softmax"
    power = np.exp(x - x.max(axis=activation.axis, keepdims=True))
    return power / power.sum(axis=activation.axis, keepdims=True)


def penalty(regularizer: Any, x: Any) -> float | None:
    """Returns what an l1 or l2 regularizer says of a tensor."""
    if regularizer is None:
        return None
    return float(sum(factor * (np.abs(x) ** int(name[1])).sum() for name, factor in vars(regularizer).items()))


class NumpyEngine:
    """An Engine; gates of glu are steps."""

    versions: dict[str, str] = {}  # noqa: RUF012 (a protocol's)
    tf32 = False
    traces = 0
    devices = (Device("cpu:0", "cpu", ""),)

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        raise NotImplementedError

    def constrain(self, layer: Layer) -> tuple[Layer, Losses]:
        raise NotImplementedError

    def convolve(
        self, layers: Sequence[Layer], inputs: Sequence[Any], output_dtype: str, device: int, *_: Any
    ) -> Computed:
        x, losses = np.concatenate(inputs), []
        for each in layers:
            config = each.config
            x = activated(config, convolved(each, x)).astype(numpy_dtype(config.compute_dtype))
            activity = penalty(config.activity_regularizer, np.asarray(x, "f8"))
            losses.append(
                Losses(
                    kernel=penalty(config.kernel_regularizer, each.kernel),
                    bias=None if each.bias is None else penalty(config.bias_regularizer, each.bias),
                    activity=None if activity is None else activity / len(x),
                )
            )
        output = x.astype(numpy_dtype(output_dtype))
        return Computed(output, tuple(losses), self.devices[device].name, warm=True, batch_size=len(x))
