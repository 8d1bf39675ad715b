"""Outputs on the disk: each is there as a whole, or not at all.

A file that is written at once is not waited for until it is on the disk, which would cost more than the computation.
It is complete when it gets its name, whoever is killed; after a power failure it may be shorter than the journal says,
and is then written again. What is written in parts has its full size from the start, so each part is waited for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import numpy as np

from convserve.batch.formats.arrays import FORMATS, Npy
from convserve.batch.formats.zarr_files import zarr_package
from convserve.errors import InvalidRequestError, short_repr
from convserve.files.arrays import storable
from convserve.tensors.codec import Array, Shape, numpy_dtype

UNFINISHED = ".unfinished"
"""The folder, in that for outputs, of what is being written."""


class OutputFolder:
    """The folder of a run's outputs. Its methods raise OSError where the disk does not take them."""

    def __init__(self, folder: Path, stored_as: str | Npy) -> None:
        """Takes a folder that exists or can be made, and one of `FORMATS` by its name or itself.

        One of Zarr's makes the first import of the package.
        """
        if folder.exists() and not folder.is_dir():
            expected = "a folder, or a path where one can be made"
            raise InvalidRequestError.for_field("output", expected, f"{short_repr(str(folder))}, a file")
        self.folder = folder
        self.format = FORMATS[stored_as] if isinstance(stored_as, str) else stored_as
        self._unfinished = folder / UNFINISHED
        if stored_as == "zarr":
            zarr_package()

    def path(self, stem: str) -> Path:
        """Returns the file, or Zarr's folder, of an output."""
        return self.folder / f"{stem}{self.format.suffix}"

    def file_bytes(self, shape: Shape, dtype: str) -> int:
        """Returns the bytes that the file of an output takes before it is compressed."""
        return self.format.file_bytes(shape, _storable_dtype(dtype).itemsize)

    def size(self, stem: str) -> int | None:
        """Returns the size of an output's file, of Zarr that of all its files, or None if there is none."""
        try:
            return _size(self.path(stem))
        except OSError:
            return None

    def write(self, stem: str, array: Array) -> int:
        """Writes an output as a whole, in the place of one that is there, and returns its size."""
        return self._complete(stem, lambda new: self.format.save(new, storable(array)))

    def begin(self, stem: str, shape: Shape, dtype: str, rows: int) -> None:
        """Makes an output that comes in parts of so many rows, the last perhaps of fewer."""
        parts = self._parts(stem)
        with suppress(FileNotFoundError):
            self.path(stem).lstat()  # a name that is too long is better refused now than when all is computed
        _remove(parts)
        self._unfinished.mkdir(exist_ok=True)
        self.format.create(parts, shape, _storable_dtype(dtype), rows)

    def has_begun(self, stem: str, shape: Shape, dtype: str) -> bool:
        """Whether there is such an output to be gone on with."""
        try:
            array = self.format.open(self._parts(stem))
        except (ValueError, OSError):
            return False
        return tuple(array.shape) == tuple(shape) and array.dtype == _storable_dtype(dtype)

    def write_rows(self, stem: str, start: int, rows: Array) -> None:
        """Writes a part, durably."""
        self.format.write_rows(self._parts(stem), start, storable(rows))

    def finish(self, stem: str) -> int:
        """Puts an output, of which all parts are there, in its place, and returns its size."""
        return self._complete(stem, partial(self.format.finish, self._parts(stem)))

    def clear(self, begun: set[str]) -> None:
        """Removes what an earlier run left unfinished, except for the parts of these outputs."""
        if not self._unfinished.is_dir():
            return
        kept = {self._parts(stem).name for stem in begun}
        for path in self._unfinished.iterdir():
            if path.name not in kept:
                _remove(path)
        if not kept:
            self._unfinished.rmdir()

    def _parts(self, stem: str) -> Path:
        return self._unfinished / f"{_short(stem)}{self.format.parts_suffix}"

    def _complete(self, stem: str, make: Callable[[Path], None]) -> int:
        """Makes a new file under another name, gives it its own, and returns its size."""
        path, suffix = self.path(stem), self.format.suffix
        self._unfinished.mkdir(exist_ok=True)
        new = self._unfinished / f"{_short(stem)}-{os.urandom(4).hex()}{suffix}"
        try:
            make(new)
            size = _size(new)
            if suffix == ".zarr" and path.is_dir():
                _remove(path)  # a folder cannot be replaced at once; what was in it is out of date
            path.parent.mkdir(parents=True, exist_ok=True)
            new.rename(path)
        except BaseException:
            _remove(new)
            raise
        return size


def _size(path: Path) -> int:
    status = path.stat()
    if S_ISDIR(status.st_mode):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return status.st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _short(stem: str) -> str:
    return hashlib.sha256(stem.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _storable_dtype(name: str) -> np.dtype[Any]:
    return numpy_dtype("float32" if name == "bfloat16" else name)
