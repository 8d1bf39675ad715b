"""A layer's input in a file: an array of NumPy's, or a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convserve.errors import FieldViolation, InvalidTensorError
from convserve.files.arrays import ARRAY_SUFFIXES, Array, read_array
from convserve.files.images import PICTURE_SUFFIXES, read_image

INPUT_SUFFIXES = (*ARRAY_SUFFIXES, *PICTURE_SUFFIXES)
"""How the names of the files that `read_input` reads end."""


def read_input(path: str | Path, data_format: str) -> Array:
    """Returns what a file holds as a layer's input of rank 4.

    Args:
        path: As in `read_array` or `read_image`; the end of its name says which.
        data_format: "channels_last" or "channels_first": where the layer has its channels.

    Raises:
        InvalidTensorError: If the file cannot be read, or its name ends otherwise.
        MissingDependencyError: Without Pillow, for a picture.
    """
    name = str(path)
    if name.lower().endswith(PICTURE_SUFFIXES):
        return read_picture(path, data_format)
    if name.lower().endswith(ARRAY_SUFFIXES) or ".npz:" in name:
        return read_array(path, data_format=data_format)
    expected = f"a file that ends in {', '.join(INPUT_SUFFIXES)}"
    raise InvalidTensorError(FieldViolation("input", f"Expected {expected}. Received {name!r}."))


def read_picture(path: str | Path, data_format: str, value_range: tuple[float, float] | None = None) -> Array:
    """Returns a picture as a layer's input.

    Args:
        path: The file.
        data_format: Where the layer has its channels.
        value_range: The values of black and white; the pixels are then float32. None: they are uint8, as they are.

    Returns:
        Shape (1, height, width, 1 or 3), or (1, 1 or 3, height, width) with "channels_first".

    Raises:
        InvalidTensorError: As `read_image`.
        MissingDependencyError: Without Pillow.
    """
    pixels: Array = read_image(path)
    if data_format == "channels_first":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    if value_range is None:
        return pixels
    low, high = value_range
    return pixels * np.float32((high - low) / 255) + np.float32(low)
