"""What is in an input: arrays, of which any rows can be read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_IFREG, S_ISDIR, S_ISREG

import numpy as np

from convserve.batch.formats import zarr_files
from convserve.batch.inputs import Inputs, member_stem, output_stem
from convserve.batch.listing import ZARR_METADATA
from convserve.errors import ConvserveError
from convserve.files.arrays import NpyFile, as_batch, load_array, names_in, split_member
from convserve.files.images import INPUT_PICTURE_SUFFIXES, image_shape, read_image
from convserve.files.reading import check_fits, unreadable, wrap_read_errors
from convserve.tensors.codec import Array, Shape, name_of

_EXPECTED = "an input that can be read"
_FORTRAN_BYTES = 256 * 2**20  # up to which a batch in Fortran's order is read at once, twenty times as fast as by rows


@dataclass(frozen=True)
class Reading:
    """How inputs are read."""

    data_format: str  # of the layer
    input_range: tuple[float, float] | None = None  # the values of black and white in pictures; None for uint8
    keep_suffix: bool = False  # whether an output's name keeps the suffix of its input's


@dataclass(frozen=True)
class Source:
    """Where an array is: a file, or one of the arrays in an archive or Zarr group."""

    key: str  # what identifies it among the run's inputs
    stem: str  # its output's name without suffix
    path: Path  # the file, or Zarr's folder
    member: str  # its name in an archive or group; "" without
    stamp: str  # of the file: its size and time of change
    file_bytes: int
    stamped: Path  # what the stamp is of: the file, or the array's folder in Zarr's group

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is still what it was when this was made."""
        return stamp_of(self.stamped) == self.stamp


@dataclass(frozen=True)
class InputArray:
    """An array that can be read."""

    source: Source
    shape: Shape  # of rank 4
    dtype: str
    is_sample: bool  # whether it is a single sample, whose output has no batch axis either
    step: int  # how many rows are best read at once; 1 where that does not matter
    rows: Callable[[int, int], Array]  # from the first number to below the second, of rank 4

    def read(self, start: int, stop: int) -> Array:
        """Returns rows, or the sample, of rank 3; raises InvalidTensorError if they cannot be read."""
        rows = self.rows(start, stop)
        return rows[0] if self.is_sample else rows


def sources_in(inputs: Inputs, name: str, keep_suffix: bool) -> list[Source]:
    """Returns the arrays of an input, of which there are several in an archive or group, without reading them.

    Raises InvalidTensorError for what cannot be read or has none, and MissingDependencyError without zarr.
    """
    path, stem, chosen = inputs.path(name), output_stem(name, keep_suffix), split_member(name)[1]
    with wrap_read_errors(path, "input", _EXPECTED):
        status = _status(path)
        mode, size = (S_IFREG, 0) if status is None else (status.st_mode, status.st_size)
        if S_ISDIR(mode):
            members, separator, size = list(zarr_files.arrays_in(path)), "/", 0
        elif not S_ISREG(mode):
            raise unreadable("a file that can be read", path, "it is a pipe or a device")  # which would be waited for
        elif path.suffix.lower() == ".npz" and chosen is None:
            members, separator = names_in(path), ":"
        else:
            return [Source(name, stem, path, chosen or "", stamp_of(path), size, path)]
        if not members:
            raise unreadable("a file that can be read", path, "it has no arrays")
        is_one = members == [""] or (separator == ":" and len(members) == 1)
        return [
            Source(key, stem if is_one else member_stem(stem, member), path, member, stamp_of(own), size, own)
            for member in members
            for key in (f"{name}{separator}{member}" if member else name,)
            for own in (path / member if separator == "/" else path,)
        ]


def first_channels(inputs: Inputs, reading: Reading) -> int:
    """Returns the channels of the first input that can be read; raises what is wrong with the first if none can be."""
    error: ConvserveError | None = None
    for name in inputs.names:
        try:
            shape = open_array(sources_in(inputs, name, reading.keep_suffix)[0], reading, shape_only=True).shape
            return shape[3 if reading.data_format == "channels_last" else 1]
        except ConvserveError as found:
            error = error or found
    assert error is not None  # noqa: S101 (a run has inputs)
    raise error


def stamp_of(path: Path) -> str:
    """Returns a file's size and the time of its last change, or those of Zarr's metadata; "" if there is none."""
    status = _status(path)
    if status is not None and S_ISDIR(status.st_mode):
        status = next(filter(None, (_status(path / name) for name in ZARR_METADATA)), status)
    return "" if status is None else f"{status.st_size}:{status.st_mtime_ns}"


def open_array(source: Source, reading: Reading, *, shape_only: bool = False) -> InputArray:
    """Returns an array, read if it is a single sample or lies in an archive, else left where it is.

    Of a picture the header is read alone if only its shape is wanted; it has no rows then.

    Raises InvalidTensorError for what cannot be read or has a rank of no layer's inputs.
    """
    path, suffix = source.path, source.path.suffix.lower()
    with wrap_read_errors(path, "input", _EXPECTED):
        if suffix in INPUT_PICTURE_SUFFIXES and shape_only:
            shape = image_shape(path, reading.data_format)
            dtype = "uint8" if reading.input_range is None else "float32"
            return InputArray(source, shape, dtype, True, 1, lambda *_: np.empty(0))
        if suffix in INPUT_PICTURE_SUFFIXES:
            return _loaded(source, read_image(path, reading.data_format, reading.input_range)[0], reading)
        if path.is_dir():
            stored = zarr_files.arrays_in(path)[source.member]
            zarr_files.check_plain(stored, path)
            rows = partial(zarr_files.read_rows, stored, path)
            check_fits(stored.dtype.itemsize * math.prod(stored.chunks if stored.ndim == 4 else stored.shape), path)
            if stored.ndim != 4:
                return _loaded(source, rows(None, None), reading)
            return InputArray(source, tuple(stored.shape), stored.dtype.name, False, stored.chunks[0], rows)
        if suffix == ".npz":
            return _loaded(source, load_array(f"{path}:{source.member}"), reading)
        file = NpyFile(path)
        if len(file.shape) != 4 or (file.is_fortran and source.file_bytes <= _FORTRAN_BYTES):
            return _loaded(source, load_array(path), reading)
        check_fits(file.dtype.itemsize * math.prod(file.shape[1:]), path)  # one sample
        return InputArray(source, file.shape, file.dtype.name, False, 1, file.rows)


def _loaded(source: Source, array: Array, reading: Reading) -> InputArray:
    batch = as_batch(array, source.path, reading.data_format)
    return InputArray(source, batch.shape, name_of(batch), array.ndim < 4, 1, lambda start, stop: batch[start:stop])


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # reading it says why
        return None
