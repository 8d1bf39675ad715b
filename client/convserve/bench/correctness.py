"""Whether answers are right: compared with the layer in process, or without TensorFlow with its definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convserve.activations import ReLU
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan, channel_axis, padding_amounts
from convserve.tensors.codec import Array, Shape

LIMITS = {"float32": 1e-4, "float64": 1e-10, "float16": 1e-2, "bfloat16": 5e-2}
"""By compute dtype: the largest difference that is rounding, as a share of the output's largest value."""
TF32_LIMIT = 5e-3
"""The same for float32 where a GPU may round factors to 10 bits."""
_PLACES = 64
_PLAIN = ReLU().parameters


@dataclass(frozen=True)
class Expectation:
    """What an output should be, everywhere or at some places."""

    shape: Shape
    dtype: str
    values: Array  # the whole output; or (places, filters) where `places` says which
    places: npt.NDArray[np.intp] | None = None  # (places, 3): sample, row, column; None for everywhere
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


def by_definition(layer: Layer, x: Array, plan: Plan) -> Expectation | None:
    """Returns what the definition of convolution, computed with numpy in float64, says of some places.

    Of an activation other than none and relu, which are Keras' to define, it returns None.
    """
    config, kernel = layer.config, layer.kernel
    name = config.activation.keras_name
    if kernel is None or name not in ("linear", "relu") or (name == "relu" and config.activation.parameters != _PLAIN):
        return None
    axis = channel_axis(config)
    image = np.moveaxis(x, axis, 3)
    batch, *sides = np.delete(np.array(plan.output_shape), axis)
    image = np.pad(image, ((0, 0), *(padding_amounts(config, image.shape[1 + way], way) for way in (0, 1)), (0, 0)))
    rng = np.random.default_rng(0)
    last_row, last_column = sides[0] - 1, sides[1] - 1
    corners = [(0, 0, 0), (batch - 1, 0, last_column), (0, last_row, 0), (batch - 1, last_row, last_column)]
    places = np.array(corners + [tuple(rng.integers(0, (batch, *sides))) for _ in range(_PLACES)], np.intp)
    taps = [step * np.arange(size) for size, step in zip(config.kernel_size, config.dilation_rate, strict=True)]
    strides = config.strides
    values = np.stack(
        [
            image[sample][np.ix_(row * strides[0] + taps[0], column * strides[1] + taps[1])].astype(np.float64)
            for sample, row, column in places
        ]
    )  # (places, kernel height, kernel width, channels)
    groups = values.reshape(*values.shape[:3], config.groups, -1)
    kernels = kernel.astype(np.float64).reshape(*kernel.shape[:3], config.groups, -1)
    outputs = np.einsum("pyxgc,yxcgf->pgf", groups, kernels, optimize=True).reshape(len(places), -1)
    outputs += 0.0 if layer.bias is None else layer.bias.astype(np.float64)
    if name == "relu":
        outputs = np.maximum(outputs, 0.0)
    return Expectation(plan.output_shape, plan.output_dtype, outputs, places, axis)
