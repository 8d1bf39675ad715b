"""Zarr, by the package of that name: `pip install 'convserve[zarr]'`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import InvalidTensorError, MissingDependencyError, short_repr
from convserve.tensors.codec import Array


def zarr_package() -> Any:
    """Returns the package, or raises MissingDependencyError."""
    try:
        return importlib.import_module("zarr")
    except ImportError as error:
        text = "Reading and writing Zarr needs the package zarr: pip install 'convserve[zarr]'."
        raise MissingDependencyError(text) from error


def arrays_in(path: Path) -> dict[str, Any]:
    """Returns the arrays of a Zarr group by their names in it, or a single array under the name "".

    Raises InvalidTensorError if it cannot be read.
    """
    zarr = zarr_package()
    with _wrap_read_errors(path):
        opened = zarr.open(str(path), mode="r")
        if isinstance(opened, zarr.Array):
            return {"": opened}
        members = opened.members(max_depth=None)
        return {name: array for name, array in sorted(members) if isinstance(array, zarr.Array)}


def read_rows(array: Any, path: Path, start: int | None, stop: int | None) -> Array:
    """Returns `array[start:stop]`, or raises InvalidTensorError."""
    with _wrap_read_errors(path):
        return np.asarray(array[start:stop])


@contextmanager
def _wrap_read_errors(path: Path) -> Iterator[None]:
    """Turns what zarr raises in the block for what it cannot read into an InvalidTensorError."""
    try:
        yield
    except Exception as error:  # a codec raises whatever its library does
        is_too_large = isinstance(error, MemoryError)
        expected = "an array that fits into memory" if is_too_large else "a Zarr array or group that can be read"
        received = f"{short_repr(str(path))}: {str(error) or type(error).__name__}"
        raise InvalidTensorError.for_field("input", expected, received) from error
