"""Arrays in files: NumPy's .npy and .npz, read without ever unpickling."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convserve.errors import InvalidTensorError, short_repr
from convserve.files.reading import check_fits, open_file, parsed, unreadable, wrap_read_errors
from convserve.files.writing import unwritable, whole_file
from convserve.tensors.codec import Array, Shape

ARRAY_SUFFIXES = (".npy", ".npz")
"""How the names of the files that `load_array` reads end."""
CONFIGURATION = "convserve.v1.layer"
"""The name of a text in a .npz file, of a layer's configuration, which counts as no array."""
_EXPECTED = "a .npy or .npz file of numbers"
_READ_BYTES = 2**20  # at once: what comes out of an archive is copied once more


def load_array(path: str | Path, field: str = "input") -> Array:
    """Returns the array in `file.npy`, the only one in `file.npz`, or the one that `file.npz:name` chooses.

    Raises InvalidTensorError for the field, if the file cannot be read, holds Python objects, or needs a name.
    """
    file, chosen = split_member(str(path))
    with _loaded(file, field) as loaded:
        if isinstance(loaded, np.lib.npyio.NpzFile):
            number = loaded.files.index(_member(_names(loaded), chosen, file, field))
            member = loaded.zip.infolist()[number]  # type: ignore[union-attr]
            check_fits(member.file_size, file, field)
            with loaded.zip.open(member) as opened:  # type: ignore[union-attr]
                return _read_array(opened, member.file_size)
        if chosen is not None:
            raise InvalidTensorError.for_field(field, "a .npz archive before ':'", f"{file!r}, which is a .npy file")
        return np.asarray(loaded)


def names_in(path: str | Path) -> list[str]:
    """Returns the names of the arrays in a .npz file; raises InvalidTensorError if it is something else."""
    with _loaded(str(path), "input") as loaded:
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InvalidTensorError.for_field("input", "a .npz archive", f"{str(path)!r}, which is a .npy file")
        return _names(loaded)


class NpyFile:
    """A .npy file of which rows are read when they are asked for.

    They are read, not mapped: a file that is cut short ends a program that reads a mapping of it, by SIGBUS. Where it
    `is_fortran` a row's elements lie all over the file, so that reading a few rows takes long.
    """

    def __init__(self, path: str | Path, field: str = "input") -> None:
        """Reads the header; raises InvalidTensorError as `load_array` does."""
        self._path, self._field = path, field
        with _wrap_read_errors(path, field), open_file(path) as file:
            self.shape, self.is_fortran, self.dtype = read_header(file)
            self.offset = file.tell()
            size = os.fstat(file.fileno()).st_size - self.offset
        if self.dtype.hasobject:
            raise unreadable(_EXPECTED, path, "an array of Python objects", field)
        needed = math.prod(self.shape) * self.dtype.itemsize
        if size != needed:
            received = f"{size} bytes, where its header says {needed}: shape {self.shape}, dtype {self.dtype}"
            raise unreadable("a .npy file of one whole array", path, received, field)

    def rows(self, start: int, stop: int) -> Array:
        """Returns `array[start:stop]`; raises InvalidTensorError if the file has become shorter."""
        count, inner, size = stop - start, math.prod(self.shape[1:]), self.dtype.itemsize
        with _wrap_read_errors(self._path, self._field), open_file(self._path) as file:
            if not self.is_fortran:
                array = np.empty((count, *self.shape[1:]), self.dtype)
                self._fill(file, start * inner * size, array)
                return array
            # A row's elements lie all over the file; those of one place in all rows lie together. A buffer would be
            # filled anew for each of them.
            raw: Any = file.raw  # type: ignore[attr-defined]
            columns = np.empty((*reversed(self.shape[1:]), count), self.dtype)
            for number, column in enumerate(columns.reshape(inner, count)):
                self._fill(raw, (number * self.shape[0] + start) * size, column)
            return np.ascontiguousarray(columns.T)

    def _fill(self, file: BinaryIO, begin: int, array: Array) -> None:
        file.seek(self.offset + begin)
        if array.nbytes and file.readinto(array.view("u1").data) != array.nbytes:  # type: ignore[attr-defined]
            raise unreadable("a .npy file of one whole array", self._path, "it has become shorter", self._field)


# Version (3, 0) is only for names of fields that are not Latin-1.
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # but for the letters of fields, and no layer takes arrays with these
}


def read_header(file: Any) -> tuple[Shape, bool, np.dtype[Any]]:
    """Returns shape, whether the order is Fortran's, and dtype at the beginning of a .npy file; or raises anything."""
    version = np.lib.format.read_magic(file)
    if version not in _READ_HEADER:
        raise ValueError(f"version {version} of NumPy's format, which is not one of {list(_READ_HEADER)}")
    begin = file.tell()

    def parse() -> tuple[Shape, bool, np.dtype[Any]]:
        file.seek(begin)
        return _READ_HEADER[version](file)

    return parsed(parse)


def _read_array(file: Any, size: int) -> Array:
    """Returns the array in a .npy file of so many bytes; or raises anything.

    `numpy.load` would do, but parses the header and reads what follows at once: see `parsed`.
    """
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError("a file that is shorter than its header says")
    array = np.empty(shape[::-1] if is_fortran else shape, dtype)
    left = array.reshape(-1).view("u1").data
    while left:
        read = file.readinto(left[:_READ_BYTES])
        if not read:
            raise ValueError("a file that has become shorter")
        left = left[read:]
    return array.T if is_fortran else array


def as_batch(array: Array, path: str | Path, data_format: str) -> Array:
    """Returns an array that was read from `path` as a layer's input, with axes of length 1 where some were left out.

    Rank 3 is one sample, rank 2 the (height, width) of one sample of one channel. For other ranks than 2 to 4
    InvalidTensorError is raised.
    """
    if array.ndim == 2:
        array = array[:, :, np.newaxis] if data_format == "channels_last" else array[np.newaxis]
    if array.ndim == 3:
        array = array[np.newaxis]
    if array.ndim != 4:
        expected = "an array of rank 4 such as (batch, height, width, channels), or of rank 3 or 2 for one sample"
        raise InvalidTensorError.for_field("input", expected, f"shape {array.shape} in {str(path)!r}")
    return array


def save_array(path: str | Path, array: Array) -> None:
    """Writes an array as a .npy file, whole or not at all.

    bfloat16, which the format cannot name, is written as float32, without loss. InvalidRequestError is raised if the
    file cannot be written.
    """
    try:
        with whole_file(path) as file:
            write_npy(file, storable(array))
    except OSError as error:
        raise unwritable("output", path, error) from error


def write_npy(file: BinaryIO, array: Array) -> None:
    """Writes an array as `numpy.save` does, which does not say why a disk takes no more."""
    ordered = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ordered))
    file.write(ordered.reshape(-1).view("u1").data)


def storable(array: Array) -> Array:
    """Returns an array as NumPy's formats can name it: bfloat16 as float32, without loss."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


@contextmanager
def _loaded(file: str, field: str) -> Iterator[Any]:
    with _wrap_read_errors(file, field), open_file(file) as opened:
        is_archive, size = opened.read(2) == b"PK", os.fstat(opened.fileno()).st_size
        opened.seek(0)
        if is_archive:  # no more than its list is read here
            loaded = np.load(opened, allow_pickle=False)
            if len(set(loaded.files)) < len(loaded.files):
                raise unreadable("an archive of arrays with different names", file, ", ".join(loaded.files), field)
            yield loaded
            return
        check_fits(size, file, field)
        array = _read_array(opened, size)
        if opened.read(1):
            raise unreadable("a .npy file of one array", file, "something follows the array", field)
        yield array


def _why_not(error: Exception) -> str:
    # NumPy suggests allow_pickle=True for an unknown format, which would be bad advice: unpickling runs code.
    pickled = "Object arrays" in str(error) or "Python objects" in str(error)
    return "an array of Python objects" if pickled else "one that is broken, or that is not NumPy's"


_wrap_read_errors = functools.partial(wrap_read_errors, expected=_EXPECTED, reason=_why_not)
"""Turns what NumPy and the system raise in a block into an InvalidTensorError that names the file and the field."""


def split_member(path: str) -> tuple[str, str | None]:
    """Splits `file.npz:name`. Only a colon after .npz counts: others belong to the path, such as a drive's."""
    file, separator, name = path.rpartition(".npz:")
    return (f"{file}.npz", name) if separator else (path, None)


def _names(archive: Any) -> list[str]:
    return [name for name in archive.files if name != CONFIGURATION]


def _member(names: Sequence[str], chosen: str | None, file: str, field: str) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is not None and chosen in names:
        return chosen
    listed = ", ".join(names) or "none"
    if chosen is not None:
        expected = f"one of the arrays in {file!r} ({listed})"
        raise InvalidTensorError.for_field(field, expected, short_repr(chosen))
    example = f"{file}:{names[0] if names else 'name'}"
    expected = f"an archive of one array, or a choice such as {example!r}"
    raise InvalidTensorError.for_field(field, expected, f"{file!r} with {len(names)} arrays ({listed})")
