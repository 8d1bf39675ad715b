"""A layer's output as a figure: a grid of feature maps, or a picture, with its input beside it if wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.display.panels import Panel, ShownFigure, draw
from convserve.display.pixels import MAX_MAPS, ValueRange, brightness, chosen, finite_range, is_picture

Array = npt.NDArray[Any]


def draw_output(
    pixels: Array,
    title: str,
    *,
    channels: Sequence[int] | None = None,
    value_range: ValueRange = None,
    beside: Array | None = None,
) -> ShownFigure:
    """Returns a figure of an output: of 1 or 3 channels as a picture, of another number as a grid of maps.

    Args:
        pixels: Shape (height, width, channels), float32 or float64.
        title: Text above it.
        channels: Which channels to draw, each as a map also if there are 1 or 3. None: the first `MAX_MAPS`.
        value_range: The values at the ends of the colours.
        beside: The input, likewise, of any size; of other channels than a picture their mean is drawn.

    Raises:
        InvalidRequestError: If there is no such channel.
    """
    count = pixels.shape[-1]
    stands_beside = None if beside is None else _input_panel(beside)
    if channels is None and is_picture(count):
        low, high = value_range if isinstance(value_range, tuple) else finite_range(pixels)
        return draw([_picture_panel("output", pixels, low, high)], title, beside=stands_beside)
    numbers = chosen(channels, count, MAX_MAPS, "channels")
    if len(numbers) < count:
        first = numbers == list(range(len(numbers)))
        title += f"\n{'the first ' if first else ''}{len(numbers)} of {count} filters"
    common = _common_range(pixels, numbers, value_range)
    made = [_map_panel(pixels[..., number], f"filter {number}", common) for number in numbers]
    return draw(made, title, beside=stands_beside, scale=None if common is None else made[0])


def _common_range(pixels: Array, numbers: Sequence[int], value_range: ValueRange) -> tuple[float, float] | None:
    """Returns the values at the ends of the colours of all these maps; None if each has its own."""
    if value_range != "shared":
        return value_range
    return _apart(*finite_range(pixels[..., list(numbers)]))


def _input_panel(pixels: Array) -> Panel:
    """Returns the input as a picture, or where it has other channels than a picture as their mean."""
    if is_picture(pixels.shape[-1]):
        return _picture_panel("input", pixels, *finite_range(pixels))
    return _map_panel(pixels.mean(axis=-1), f"input, mean of {pixels.shape[-1]} channels", None)


def _picture_panel(label: str, pixels: Array, low: float, high: float) -> Panel:
    shares = brightness(pixels, low, high)
    if pixels.shape[-1] == 1:
        return Panel(label, shares[..., 0], note=_span(low, high), colours="gray")
    return Panel(label, shares, note=_span(low, high))


def _map_panel(values: Array, label: str, common: tuple[float, float] | None) -> Panel:
    low, high = finite_range(values)
    ends = _apart(low, high) if common is None else common
    return Panel(label, np.where(np.isfinite(values), values, np.nan), *ends, note=_span(low, high))


def _apart(low: float, high: float) -> tuple[float, float]:
    """Returns ends of the colours for a range; of a flat map its value is in the middle, as it is neither end."""
    if math.isnan(low):
        return 0.0, 1.0
    return (low - 1, high + 1) if low == high else (low, high)


def _span(low: float, high: float) -> str:
    if math.isnan(low):
        return "not finite"
    return f"all {low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
