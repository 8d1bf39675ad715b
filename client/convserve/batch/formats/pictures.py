"""Outputs as pictures: a file of eight bits for each sample, in grey or colour."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from convserve.batch.formats.arrays import Npy
from convserve.display.pixels import finite_range, sample_pixels
from convserve.errors import InvalidRequestError, short_repr
from convserve.files.images import encode_picture, to_eight_bits
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import output_channels
from convserve.tensors.codec import Array, Shape

PICTURE_FORMATS = ("png", "jpg", "webp")
"""What `--format` may be, beside the formats of arrays."""

OWN: Literal["own"] = "own"
"""The range of values by which each picture has its own: from its least value to its greatest."""

Range = tuple[float, float] | Literal["own"]


class Pictures(Npy):
    """How an output is stored as a picture; its report is of what lay outside the range, and became black or white."""

    not_finite: int = 0

    def __init__(self, name: str, last: Conv2D, value_range: Range, mode: str | None) -> None:
        """Takes the last layer, and the values of black and white.

        `mode` is "rgb", "grey", or None for what the layer's channels are. Raises InvalidRequestError if they are none,
        and MissingDependencyError without Pillow.
        """
        channels = output_channels(last)
        if channels not in (1, 3):
            expected = f"a last layer of 1 or 3 filters for --format {name}"
            advice = "--format npy keeps them all, and `convserve conv2d --picture` draws them as a grid of maps"
            raise InvalidRequestError.for_field("format", expected, f"{channels} filters: {advice}")
        self.suffix = self.parts_suffix = f".{name}"
        self._format, self._range, self._mode, self._data_format = name, value_range, mode, last.data_format
        self._channels = {"rgb": 3, "grey": 1, None: channels}[mode]
        self._lock = threading.Lock()
        encode_picture(np.zeros((1, 1, 1), np.uint8), name, None)

    def save(self, path: Path, array: Array) -> None:
        """Writes one sample, of rank 3 or a batch of its own."""
        pixels = sample_pixels(array.reshape(-1, *array.shape[-3:]), 0, self._data_format)
        least, greatest = finite_range(pixels)
        low, high = (least, greatest) if self._range == OWN else self._range
        has_odd = not np.isfinite(pixels).all()
        with self._lock:
            self.not_finite += has_odd
            if least < low or greatest > high:
                seen = self.report or {"pictures": 0, "low": math.inf, "high": -math.inf}
                low_seen, high_seen = min(seen["low"], least), max(seen["high"], greatest)
                self.report = {"pictures": seen["pictures"] + 1, "low": low_seen, "high": high_seen}
        path.write_bytes(encode_picture(to_eight_bits(pixels, low, high), self._format, self._mode))

    def check(self, samples: int) -> None:
        """Raises InvalidRequestError for an array of several samples."""
        if samples > 1:
            received = f"a batch of {samples}: --format npy or zarr keeps them together"
            raise InvalidRequestError.for_field("input", f"one sample for --format {self._format}", received)

    def file_bytes(self, shape: Shape, itemsize: int) -> int:  # noqa: ARG002
        """Returns what a picture takes before it is compressed."""
        rows, columns = shape[1:3] if self._data_format == "channels_last" else shape[2:4]
        return rows * columns * self._channels


def picture_range(
    value_range: Range | None, input_range: Sequence[float] | None, format_name: str, mode: str | None
) -> Range:
    """Returns the values of black and white: those given, else those of the inputs, else 0 and 255.

    Raises InvalidRequestError if they, or a mode, are given for another format than that of pictures.
    """
    if format_name not in PICTURE_FORMATS:
        for field, value in (("value_range", value_range), ("mode", mode)):
            if value is not None:
                expected = f"--format {', '.join(PICTURE_FORMATS)} with --{field.replace('_', '-')}"
                raise InvalidRequestError.for_field(field, expected, f"--format {short_repr(format_name)}")
    if value_range is not None:
        return value_range
    return (0.0, 255.0) if input_range is None else (input_range[0], input_range[1])
