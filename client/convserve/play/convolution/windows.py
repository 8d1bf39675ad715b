"""What one pixel of the output is made of: its window on the input, and the sum that it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import padding_amounts
from convserve.tensors.codec import Array


@dataclass(frozen=True)
class Window:
    """The rows and columns of the input that one pixel of the output sees; those outside of the input are padding."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


class Padding(NamedTuple):
    """The rows and columns of zeros around the input."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


@dataclass(frozen=True)
class WrittenSum:
    """The sum of one pixel before the activation, computed in float64.

    Attributes:
        window: Where it lies on the input.
        channels: The input channels that the filter sees.
        values: (channels, kernel height, kernel width): what lies under the window, 0 on padding.
        weights: Of the same shape: the kernel's numbers.
        bias: What is added, or None.
    """

    window: Window
    channels: range
    values: Array
    weights: Array
    bias: float | None

    @property
    def products(self) -> Array:
        """Values times weights."""
        product: Array = self.values * self.weights
        return product

    @property
    def total(self) -> float:
        """All products and the bias, added."""
        return float(self.products.sum()) + (self.bias or 0.0)


def padding_of(conv2d: Conv2D, height: int, width: int) -> Padding:
    """Returns the zeros around an input of this size."""
    return Padding(*padding_amounts(conv2d, height, 0), *padding_amounts(conv2d, width, 1))


def window_of(conv2d: Conv2D, height: int, width: int, row: int, column: int) -> Window:
    """Returns the window of the output's pixel (row, column) on an input of this size."""
    padding = padding_of(conv2d, height, width)
    first = (row * conv2d.strides[0] - padding.top, column * conv2d.strides[1] - padding.left)
    rows, columns = (
        tuple(first[axis] + tap * conv2d.dilation_rate[axis] for tap in range(conv2d.kernel_size[axis]))
        for axis in (0, 1)
    )
    return Window(rows, columns)


def written_sum(
    conv2d: Conv2D, pixels: Array, kernel: Array, bias: Array | None, place: tuple[int, int, int]
) -> WrittenSum:
    """Returns the sum of the output's pixel (row, column, filter).

    `pixels` is (height, width, channels), `kernel` as Conv2D has it.
    """
    row, column, filter_number = place
    height, width = pixels.shape[:2]
    window = window_of(conv2d, height, width, row, column)
    depth = kernel.shape[2]
    first = filter_number // (conv2d.filters // conv2d.groups) * depth
    channels = range(first, first + depth)
    rows, columns = np.array(window.rows)[:, np.newaxis], np.array(window.columns)
    padded = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    seen = pixels[rows.clip(0, height - 1), columns.clip(0, width - 1)][..., channels].astype(np.float64)
    values = np.moveaxis(np.where(padded[..., np.newaxis], 0.0, seen), -1, 0)
    weights = np.moveaxis(kernel[..., filter_number].astype(np.float64), -1, 0)
    return WrittenSum(window, channels, values, weights, None if bias is None else float(bias[filter_number]))
