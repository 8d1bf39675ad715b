"""Zarr, by the package of that name: `pip install 'convserve[zarr]'`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import FieldViolation, InvalidTensorError, MissingDependencyError, short_repr
from convserve.tensors.codec import Array, Shape


def zarr_package() -> Any:
    """Returns the package.

    Raises:
        MissingDependencyError: Without it.
    """
    try:
        return importlib.import_module("zarr")
    except ImportError as error:
        text = "Reading and writing Zarr needs the package zarr: pip install 'convserve[zarr]'."
        raise MissingDependencyError(text) from error


def arrays_in(path: Path) -> dict[str, Any]:
    """Returns the arrays of a Zarr group by their names in it, or a single array under the name "".

    Raises:
        InvalidTensorError: If it cannot be read.
        MissingDependencyError: Without zarr.
    """
    zarr = zarr_package()
    with wrap_read_errors(path):
        opened = zarr.open(str(path), mode="r")
        if isinstance(opened, zarr.Array):
            return {"": opened}
        members = opened.members(max_depth=None)
        return {name: array for name, array in sorted(members) if isinstance(array, zarr.Array)}


def read_rows(array: Any, path: Path, start: int, stop: int) -> Array:
    """Returns `array[start:stop]`.

    Raises:
        InvalidTensorError: If it cannot be read.
    """
    with wrap_read_errors(path):
        return np.asarray(array[start:stop])


def create(path: Path, shape: Shape, dtype: Any, rows: int) -> None:
    """Makes an array whose chunks are of so many rows, so that each part of it is a chunk of its own."""
    chunks = (min(rows, shape[0]), *shape[1:])
    zarr_package().create_array(str(path), shape=shape, dtype=dtype, chunks=chunks)


def write_rows(path: Path, start: int, rows: Array) -> None:
    """Writes rows of such an array, beginning with a chunk's first, and makes them durable."""
    array = zarr_package().open_array(str(path), mode="r+")
    array[start : start + len(rows)] = rows
    step = array.chunks[0]
    for number in range(start // step, -(-(start + len(rows)) // step)):
        chunk = path / "c" / "/".join(map(str, (number, *[0] * (rows.ndim - 1))))
        if chunk.exists():  # one that holds nothing but zeros is not written
            sync(chunk)


def sync(path: Path) -> None:
    """Makes a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Turns what zarr raises in the block for what it cannot read into an InvalidTensorError."""
    try:
        yield
    except MemoryError as error:
        raise _refused("an array that fits into memory", path, error) from error
    except Exception as error:  # a codec raises whatever its library does
        raise _refused("a Zarr array or group that can be read", path, error) from error


def _refused(expected: str, path: Path, error: Exception) -> InvalidTensorError:
    reason = str(error) or type(error).__name__
    return InvalidTensorError(
        FieldViolation("input", f"Expected {expected}. Received {short_repr(str(path))}: {reason}.")
    )
