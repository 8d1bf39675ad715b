"""A layer's input in a file: an array of NumPy's, or a picture."""

from __future__ import annotations

from pathlib import Path

from convserve.errors import InvalidTensorError
from convserve.files.arrays import ARRAY_SUFFIXES, as_batch, load_array
from convserve.files.images import INPUT_PICTURE_SUFFIXES, read_image
from convserve.tensors.codec import Array

INPUT_SUFFIXES = (*ARRAY_SUFFIXES, *INPUT_PICTURE_SUFFIXES)
"""How the names of the files that `read_input` reads end."""


def read_input(path: str | Path, data_format: str = "channels_last") -> Array:
    """Returns what a file holds as a layer's input of rank 4, by `load_array` or `read_image` as its name ends.

    Raises as these and `as_batch`, and InvalidTensorError for another name.
    """
    name = str(path)
    if name.lower().endswith(INPUT_PICTURE_SUFFIXES):
        return read_image(path, data_format)
    if name.lower().endswith(ARRAY_SUFFIXES) or ".npz:" in name:
        return as_batch(load_array(path), path, data_format)
    expected = f"a file that ends in {', '.join(INPUT_SUFFIXES)}"
    raise InvalidTensorError.for_field("input", expected, repr(name))
