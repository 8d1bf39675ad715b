"""Outputs on the disk: each is there as a whole, or not at all.

A file that is written at once is not waited for until it is on the disk, which would cost more than the computation.
It is complete when it gets its name, whoever is killed; after a power failure it may be shorter than the journal says,
and is then written again. What is written in parts has its full size from the start, so each part is waited for.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import Any, BinaryIO

import numpy as np

from convserve.batch import zarr_files
from convserve.errors import InvalidRequestError, short_repr
from convserve.files.arrays import NpyFile, storable
from convserve.tensors.codec import Array, Shape, numpy_dtype

UNFINISHED = ".unfinished"
"""The folder, in that for outputs, of what is being written."""
_MEMBER = "output"  # the array's name in a .npz file
_COPIED_BYTES = 4 * 2**20


class Npy:
    """How an array is stored: as numpy.save does it. The other formats differ from it.

    An array that comes in parts is written to an unfinished file of the format `parts_suffix`, and made into what it is
    to be when all parts are there.
    """

    suffix = parts_suffix = ".npy"

    def save(self, path: Path, array: Array) -> None:
        """Writes an array as a whole."""
        ordered = np.ascontiguousarray(array)
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ordered))
            file.write(ordered.data.cast("B"))  # numpy.save does not say why a disk takes no more

    def create(self, path: Path, shape: Shape, dtype: np.dtype[Any], rows: int) -> None:  # noqa: ARG002
        """Makes an array to be written in parts of so many rows."""
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with _durable(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, described)
            file.truncate(file.tell() + math.prod(shape) * dtype.itemsize)

    def write_rows(self, path: Path, start: int, rows: Array) -> None:
        """Writes a part, durably."""
        array = NpyFile(path, "output")
        # Not through a mapping: a full disk would then end the program instead of raising an error.
        with _durable(path, "r+b") as file:
            file.seek(array.offset + start * array.dtype.itemsize * math.prod(array.shape[1:]))
            file.write(np.ascontiguousarray(rows, array.dtype).data.cast("B"))

    def open(self, path: Path) -> Any:
        """Returns an array that comes in parts."""
        return NpyFile(path)

    def finish(self, parts: Path, path: Path) -> None:
        """Makes the file that `save` would have written, of which all parts are there; `parts` may be moved."""
        parts.rename(path)


class _Npz(Npy):
    suffix = ".npz"

    def save(self, path: Path, array: Array) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{_MEMBER: array})

    def finish(self, parts: Path, path: Path) -> None:
        with (
            _durable(path, "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{_MEMBER}.npy", "w", force_zip64=True) as member,
            parts.open("rb") as raw,
        ):
            shutil.copyfileobj(raw, member, _COPIED_BYTES)
        parts.unlink()


class _Zarr(Npy):
    """Its chunks are as many rows as a part has, so that each part is a chunk of its own."""

    suffix = parts_suffix = ".zarr"

    def save(self, path: Path, array: Array) -> None:
        self.create(path, array.shape, array.dtype, len(array))
        self.write_rows(path, 0, array)

    def create(self, path: Path, shape: Shape, dtype: np.dtype[Any], rows: int) -> None:
        chunks = (min(rows, shape[0]), *shape[1:])
        zarr_files.zarr_package().create_array(str(path), shape=shape, dtype=dtype, chunks=chunks)
        _sync(path / "zarr.json")

    def write_rows(self, path: Path, start: int, rows: Array) -> None:
        array = zarr_files.zarr_package().open_array(str(path), mode="r+")
        array[start : start + len(rows)] = rows
        chunk = path.joinpath("c", str(start // array.chunks[0]), *["0"] * (rows.ndim - 1))
        if chunk.exists():  # one that holds nothing but zeros is not written
            _sync(chunk)

    def open(self, path: Path) -> Any:
        return zarr_files.arrays_in(path)[""]


FORMATS: dict[str, Npy] = {"npy": Npy(), "npz": _Npz(), "zarr": _Zarr()}
"""What `--format` may be."""


class OutputFolder:
    """The folder of a run's outputs. Its methods raise OSError where the disk does not take them."""

    def __init__(self, folder: Path, format_name: str) -> None:
        """Takes a folder that exists or can be made; one of Zarr's makes the first import of the package."""
        if folder.exists() and not folder.is_dir():
            expected = "a folder, or a path where one can be made"
            raise InvalidRequestError.for_field("output", expected, f"{short_repr(str(folder))}, a file")
        self.folder = folder
        self._format = FORMATS[format_name]
        self._unfinished = folder / UNFINISHED
        if format_name == "zarr":
            zarr_files.zarr_package()

    def path(self, stem: str) -> Path:
        """Returns the file, or Zarr's folder, of an output."""
        return self.folder / f"{stem}{self._format.suffix}"

    def size(self, stem: str) -> int | None:
        """Returns the size of an output's file, of Zarr that of all its files, or None if there is none."""
        try:
            return _size(self.path(stem))
        except OSError:
            return None

    def write(self, stem: str, array: Array) -> int:
        """Writes an output as a whole, in the place of one that is there, and returns its size."""
        return self._complete(stem, lambda new: self._format.save(new, storable(array)))

    def begin(self, stem: str, shape: Shape, dtype: str, rows: int) -> None:
        """Makes an output that comes in parts of so many rows, the last perhaps of fewer."""
        parts = self._parts(stem)
        with suppress(FileNotFoundError):
            self.path(stem).lstat()  # a name that is too long is better refused now than when all is computed
        _remove(parts)
        self._unfinished.mkdir(exist_ok=True)
        self._format.create(parts, shape, _storable_dtype(dtype), rows)

    def has_begun(self, stem: str, shape: Shape, dtype: str) -> bool:
        """Whether there is such an output to be gone on with."""
        try:
            array = self._format.open(self._parts(stem))
        except (ValueError, OSError):
            return False
        return tuple(array.shape) == tuple(shape) and array.dtype == _storable_dtype(dtype)

    def write_rows(self, stem: str, start: int, rows: Array) -> None:
        """Writes a part, durably."""
        self._format.write_rows(self._parts(stem), start, storable(rows))

    def finish(self, stem: str) -> int:
        """Puts an output, of which all parts are there, in its place, and returns its size."""
        return self._complete(stem, partial(self._format.finish, self._parts(stem)))

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
        return self._unfinished / f"{_short(stem)}{self._format.parts_suffix}"

    def _complete(self, stem: str, make: Callable[[Path], None]) -> int:
        """Makes a new file under another name, gives it its own, and returns its size."""
        path, suffix = self.path(stem), self._format.suffix
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


@contextmanager
def _durable(path: Path, mode: str) -> Iterator[BinaryIO]:
    """Opens a file, and sees to it that what was written survives a power failure."""
    with open(path, mode) as file:
        yield file  # type: ignore[misc] # every mode is binary
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    status = path.stat()
    if S_ISDIR(status.st_mode):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return status.st_size


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _short(stem: str) -> str:
    return hashlib.sha256(stem.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _storable_dtype(name: str) -> np.dtype[Any]:
    return numpy_dtype("float32" if name == "bfloat16" else name)
