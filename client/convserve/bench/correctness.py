"""Whether answers are right: compared with the layer in process, or without TensorFlow with its definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.activations import ReLU
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan
from convserve.tensors.codec import Array

LIMITS = {"float32": 1e-4, "float64": 1e-10, "float16": 1e-2, "bfloat16": 5e-2}
"""By compute dtype: the largest difference that is rounding, as a share of the output's largest value."""
TF32_LIMIT = 5e-3
"""The same for float32 where a GPU may round factors to 10 bits."""
_PLACES = 64
_PLAIN = ReLU().parameters

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Expectation:
    """What an output should be, everywhere or at some places.

    Attributes:
        shape: The output's shape.
        dtype: The name of its dtype.
        values: The whole output; or (places, filters) where `places` says which.
        places: (places, 3): sample, row, column; None for everywhere.
        channel_axis: The output's axis of the filters.
    """

    shape: tuple[int, ...]
    dtype: str
    values: Array
    places: npt.NDArray[np.intp] | None = None
    channel_axis: int = 3

    def difference(self, output: Array) -> float:
        """Returns the greatest difference as a share of the greatest value; infinity for NaN or another shape."""
        if output.shape != self.shape or output.dtype.name != self.dtype:
            return float("inf")
        if self.places is not None:
            sample, row, column = self.places.T
            output = np.moveaxis(output, self.channel_axis, 3)[sample, row, column]
        greatest = apart = 0.0
        for received, expected in zip(output, self.values, strict=True):  # one by one: doubles take twice the room
            wanted = expected.astype(np.float64)
            with np.errstate(invalid="ignore"):
                off = np.abs(received.astype(np.float64) - wanted)
            off[received == expected] = 0.0  # equal infinities
            if np.isnan(off).any():
                return float("inf")
            apart = max(apart, float(off.max()))
            greatest = max(greatest, float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))))
        if apart == 0.0:
            return 0.0
        return apart / greatest if greatest else float("inf")


def limit(config: Conv2D, tf32: bool) -> float:
    """Returns the largest difference that counts as rounding."""
    name = config.compute_dtype
    return TF32_LIMIT if tf32 and name == "float32" else LIMITS[name]


def whole(output: Array, plan: Plan) -> Expectation:
    """Returns the expectation of an output that is known to be right."""
    return Expectation(plan.output_shape, plan.output_dtype, output)


def by_definition(layer: Layer, x: Array, plan: Plan) -> Expectation | None:
    """Returns what the definition of convolution, computed with numpy in float64, says of some places.

    Args:
        layer: The layer, with weights.
        x: The input.
        plan: The call's plan.

    Returns:
        None for an activation other than none and relu, which are Keras' to define.
    """
    config, kernel = layer.config, layer.kernel
    name = config.activation.keras_name
    if kernel is None or name not in ("linear", "relu") or (name == "relu" and config.activation.parameters != _PLAIN):
        return None
    axis = 3 if config.data_format == "channels_last" else 1
    image = np.moveaxis(x, axis, 3)
    batch, rows, columns = np.delete(np.array(plan.output_shape), axis)
    rng = np.random.default_rng(0)
    corners = [(0, 0, 0), (batch - 1, 0, columns - 1), (0, rows - 1, 0), (batch - 1, rows - 1, columns - 1)]
    places = np.array(corners + [tuple(rng.integers(0, (batch, rows, columns))) for _ in range(_PLACES)], np.intp)
    bias = 0.0 if layer.bias is None else layer.bias.astype(np.float64)
    values = np.stack([_window(config, image, place) for place in places])  # (places, kh, kw, channels)
    groups = np.split(values, config.groups, axis=3)
    kernels = np.split(kernel.astype(np.float64), config.groups, axis=3)
    sums = [np.tensordot(part, weights, axes=3) for part, weights in zip(groups, kernels, strict=True)]
    outputs: Doubles = np.concatenate(sums, axis=1) + bias
    if name == "relu":
        outputs = np.maximum(outputs, 0.0)
    return Expectation(plan.output_shape, plan.output_dtype, outputs, places, axis)


def _window(config: Conv2D, image: Array, place: Any) -> Doubles:
    """Returns the input under the kernel at one place of the output: (kernel height, kernel width, channels)."""
    sample, starts, taps = place[0], [], []
    for direction in (0, 1):
        size, out = image.shape[1 + direction], int(place[1 + direction])
        window, step = config.kernel_size[direction], config.dilation_rate[direction]
        before = 0
        if config.padding == "same":
            outputs = -(-size // config.strides[direction])
            before = max(0, (outputs - 1) * config.strides[direction] + (window - 1) * step + 1 - size) // 2
        elif not isinstance(config.padding, str):
            before = config.padding[direction][0]
        positions = out * config.strides[direction] - before + step * np.arange(window)
        inside = (positions >= 0) & (positions < size)
        starts.append(inside)
        taps.append(np.where(inside, positions, 0))
    under: Doubles = image[sample][np.ix_(taps[0], taps[1])].astype(np.float64)
    under[~np.outer(starts[0], starts[1])] = 0.0
    return under
