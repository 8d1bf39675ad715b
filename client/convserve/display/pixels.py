"""A layer's output as numbers that can be drawn: a sample's pixels, the maps to show, and the range of their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from convserve.errors import InvalidRequestError, short_repr
from convserve.tensors.codec import Array

MAX_MAPS = 64
"""The most feature maps that one picture shows, unless more are named."""

ValueRange = tuple[float, float] | Literal["shared"] | None
"""The values at the ends of the colours: given; those of all maps that are drawn; None for each map's own."""

Percentiles = tuple[float, float]
"""The percentiles of the values at the ends of the colours, where they are not given."""

_ENLARGED_UP_TO, _ENLARGED_TO = 64, 256


def is_picture(maps: int) -> bool:
    """Returns whether so many channels are drawn as a picture, in grey or colour."""
    return maps in (1, 3)


def sample_pixels(tensor: Array, sample: int, data_format: str, field: str = "output") -> Array:
    """Returns one sample of a tensor of any dtype as (height, width, channels), float32 or float64.

    InvalidRequestError is raised for another rank than 4, an empty axis, or a sample that there is not.
    """
    if tensor.ndim != 4 or not tensor.size:
        raise InvalidRequestError.for_field(field, "rank 4 and no axis of 0", f"shape {tensor.shape}")
    check_sample(sample, tensor.shape[0])
    pixels: Array = tensor[sample] if data_format == "channels_last" else np.moveaxis(tensor[sample], 0, -1)
    return pixels if pixels.dtype in (np.float32, np.float64) else pixels.astype(np.float32)


def check_sample(sample: int, batch: int) -> None:
    """Raises InvalidRequestError if a batch has no sample of this number."""
    if not _is_index(sample, batch):
        raise InvalidRequestError.for_field("sample", f"a sample from 0 to {batch - 1}", sample)


def chosen(numbers: Sequence[int] | None, available: int, most: int, field: str) -> list[int]:
    """Returns which channels or filters to draw, those named or the first; raises InvalidRequestError for others."""
    if numbers is None:
        return list(range(min(available, most)))
    try:
        listed = list(numbers)
    except TypeError:
        listed = []
    if not listed or not all(_is_index(number, available) for number in listed):
        expected = f"numbers from 0 to {available - 1}, one at least"
        raise InvalidRequestError.for_field(field, expected, short_repr(numbers))
    return listed


def _is_index(number: Any, count: int) -> bool:
    is_integer = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return is_integer and bool(0 <= number < count)


def finite_range(values: Array) -> tuple[float, float]:
    """Returns the least and the greatest finite value, or NaN twice if there is none."""
    low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high):  # then all are, and no copy of what is finite is needed
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def limits_of(values: Array, value_range: ValueRange, percentiles: Percentiles | None) -> tuple[float, float]:
    """Returns the values at the ends of the colours: those given, or the least and the greatest finite one.

    With percentiles they are these of the finite values, so that a few outliers do not decide.
    """
    if isinstance(value_range, tuple):
        return value_range
    low, high = finite_range(values)
    if percentiles is None or math.isnan(low):
        return low, high
    low, high = map(float, np.percentile(values[np.isfinite(values)], percentiles))
    return low, high


def is_signed(low: float, high: float, value_range: ValueRange) -> bool:
    """Whether maps of values from `low` to `high` have 0 in the middle of their colours.

    A range that is given is kept, so that its middle has to be 0.
    """
    return low < 0 < high and (not isinstance(value_range, tuple) or low == -high)


def check_range(value_range: Any) -> None:
    """Raises InvalidRequestError for what is no range of values."""
    is_word = isinstance(value_range, str) and value_range == "shared"
    if not (value_range is None or is_word or (isinstance(value_range, tuple) and _ascends(value_range))):
        expected = "(low, high) with low < high, 'shared' or None"
        raise InvalidRequestError.for_field("value_range", expected, short_repr(value_range))


def _ascends(ends: Sequence[Any]) -> bool:
    """Returns whether these are two numbers, the second above the first."""
    try:
        low, high = (math.nan if isinstance(each, str | bytes) else float(each) for each in ends)
    except (TypeError, ValueError, OverflowError):
        return False
    return low < high


def check_percentiles(percentiles: Any, value_range: ValueRange, field: str = "percentiles") -> None:
    """Raises InvalidRequestError for what are no percentiles, or such beside values that are given."""
    if percentiles is None:
        return
    is_range = isinstance(percentiles, tuple | list) and _ascends(percentiles)
    if not (is_range and percentiles[0] >= 0 and percentiles[1] <= 100):
        expected = "(low, high) with 0 <= low < high <= 100, such as (1, 99)"
        raise InvalidRequestError.for_field(field, expected, short_repr(percentiles))
    if isinstance(value_range, tuple):
        received = f"{short_repr(percentiles)} and the range {value_range}"
        raise InvalidRequestError.for_field(field, "percentiles or a range of values", received)


def enlargement(*sizes: tuple[int, int]) -> int:
    """Returns by how much to enlarge small arrays of these heights and widths, so that their pixels can be seen.

    All have one factor, so that an output is drawn to its input's scale; 1 if one of them is larger than 64.
    """
    longest = max(max(size) for size in sizes)
    return 1 if longest > _ENLARGED_UP_TO else _ENLARGED_TO // longest


def brightness(pixels: Array, low: float, high: float) -> Array:
    """Returns values as shares of white: 0 at `low` and below, 1 at `high` and above, 0 for what is not finite."""
    finite = np.isfinite(pixels)
    if math.isnan(low) or low == high:
        return np.where(finite, 127 / 255, 0.0)  # flat: mid-grey rather than a black that looks like a fault
    # The halves keep the difference of two huge values from overflowing.
    shares = np.clip((pixels / 2 - low / 2) / (high / 2 - low / 2), 0.0, 1.0)
    return np.where(finite, shares, 0.0)
