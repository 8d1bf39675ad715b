"""What is in an input: arrays, of which any rows can be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np

from convserve.batch import zarr_files
from convserve.batch.inputs import ZARR_METADATA, Inputs, member_stem, output_stem
from convserve.errors import FieldViolation, InvalidTensorError
from convserve.files.arrays import as_batch, load_array, map_array, mapped_rows, names_in, split_member
from convserve.files.images import PICTURE_SUFFIXES, read_image
from convserve.tensors.codec import Array, Shape, name_of


@dataclass(frozen=True)
class Reading:
    """How inputs are read.

    Attributes:
        data_format: Where the layer has its channels.
        input_range: The values of black and white in pictures; None for uint8 as it is.
        keep_suffix: Whether an output's name keeps the suffix of its input's.
    """

    data_format: str
    input_range: tuple[float, float] | None = None
    keep_suffix: bool = False


@dataclass(frozen=True)
class Source:
    """Where an array is: a file, or one of the arrays in an archive or Zarr group.

    Attributes:
        key: What identifies it among the run's inputs.
        stem: Its output's name without suffix.
        path: The file, or Zarr's folder.
        member: Its name in an archive or group; "" without.
        stamp: By what it is seen that the file has changed.
        file_bytes: The file's size.
    """

    key: str
    stem: str
    path: Path
    member: str
    stamp: str
    file_bytes: int


@dataclass(frozen=True)
class InputArray:
    """An array that can be read.

    Attributes:
        source: Where it is.
        shape: Its shape, of rank 4.
        dtype: Its dtype's name.
        is_sample: Whether it is a single sample, whose output has no batch axis either.
        step: How many rows are best read at once; 1 where that does not matter.
        rows: Returns rows from the first number to below the second, of rank 4.
    """

    source: Source
    shape: Shape
    dtype: str
    is_sample: bool
    step: int
    rows: Callable[[int, int], Array]

    def read(self, start: int, stop: int) -> Array:
        """Returns rows, or the sample, of rank 3.

        Raises:
            InvalidTensorError: If they cannot be read.
        """
        rows = self.rows(start, stop)
        return rows[0] if self.is_sample else rows


def sources_in(inputs: Inputs, name: str, keep_suffix: bool) -> list[Source]:
    """Returns the arrays of an input, of which there are several in an archive or group, without reading them.

    Raises:
        InvalidTensorError: If it cannot be read, or has none.
        InvalidRequestError: If an array has a name that leads out of the folder for outputs.
        MissingDependencyError: Without zarr, for what is Zarr's.
    """
    path, stem = inputs.path(name), output_stem(name, keep_suffix)
    status = _status(path)
    is_folder = status is not None and S_ISDIR(status.st_mode)
    if status is not None and not (is_folder or S_ISREG(status.st_mode)):
        raise _unreadable(path, "it is a pipe or a device")  # which would be waited for
    stamp, size = _stamp(path, status), 0 if status is None else status.st_size
    if is_folder:
        sources = [
            Source(f"{name}/{member}", member_stem(stem, member), path, member, stamp_of(path / member), 0)
            if member
            else Source(name, stem, path, member, stamp, 0)
            for member in zarr_files.arrays_in(path)
        ]
    elif path.suffix.lower() == ".npz" and (chosen := split_member(name)[1]) is not None:
        return [Source(name, stem, path, chosen, stamp, size)]
    elif path.suffix.lower() == ".npz":
        members = names_in(path)
        sources = [
            Source(
                f"{name}:{member}", member_stem(stem, member) if len(members) > 1 else stem, path, member, stamp, size
            )
            for member in members
        ]
    else:
        return [Source(name, stem, path, "", stamp, size)]
    if not sources:
        raise _unreadable(path, "it has no arrays")
    return sources


def stamp_of(path: Path) -> str:
    """Returns by what it is seen whether a file has changed: its size and the time of its last change; "" of none."""
    return _stamp(path, _status(path))


def _stamp(path: Path, status: os.stat_result | None) -> str:
    if status is not None and S_ISDIR(status.st_mode):
        statuses = (_status(path / name) for name in ZARR_METADATA)
        status = next(filter(None, statuses), status)
    return "" if status is None else f"{status.st_size}:{status.st_mtime_ns}"


def open_array(source: Source, reading: Reading) -> InputArray:
    """Returns an array, read if it is a single sample or lies in an archive, else left where it is.

    Raises:
        InvalidTensorError: If it cannot be read, or is of another rank than a layer's inputs.
        MissingDependencyError: Without the package that reads it.
    """
    path, suffix = source.path, source.path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return _loaded(source, read_image(path, reading.data_format, reading.input_range)[0], reading)
    if path.is_dir():
        stored = zarr_files.arrays_in(path)[source.member]
        if stored.ndim != 4:
            with zarr_files.wrap_read_errors(path):
                return _loaded(source, np.asarray(stored[...]), reading)
        rows = partial(zarr_files.read_rows, stored, path)
        return InputArray(source, tuple(stored.shape), stored.dtype.name, False, stored.chunks[0], rows)
    if suffix == ".npz":
        return _loaded(source, load_array(f"{path}:{source.member}"), reading)
    mapped = map_array(path)
    if mapped.ndim != 4:
        return _loaded(source, load_array(path), reading)
    return InputArray(source, tuple(mapped.shape), name_of(mapped), False, 1, partial(mapped_rows, mapped))


def _loaded(source: Source, array: Array, reading: Reading) -> InputArray:
    batch = as_batch(array, source.path, reading.data_format)

    def rows(start: int, stop: int) -> Array:
        return batch[start:stop]

    return InputArray(source, batch.shape, name_of(batch), array.ndim < 4, 1, rows)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # reading it says why
        return None


def _unreadable(path: Path, why: str) -> InvalidTensorError:
    text = f"Expected a file that can be read. Received {str(path)!r}: {why}."
    return InvalidTensorError(FieldViolation("input", text))
