"""Outputs as arrays: numpy.save's form, compressed archives, and Zarr."""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convserve.batch.formats import zarr_files
from convserve.files.arrays import NpyFile, write_npy
from convserve.tensors.codec import Array, Shape

_MEMBER = "output"  # the array's name in a .npz file
_COPIED_BYTES = 4 * 2**20


class Npy:
    """How an array is stored: as numpy.save does it. The other formats differ from it.

    An array that comes in parts is written to an unfinished file of the format `parts_suffix`, and made into what it is
    to be when all parts are there.
    """

    suffix = parts_suffix = ".npy"
    report: dict[str, Any] | None = None
    """What a run's report says of values that lay outside the range of pictures."""
    not_finite: int | None = None
    """How many pictures had values that are not finite; None for arrays, which keep them."""

    def save(self, path: Path, array: Array) -> None:
        """Writes an array as a whole."""
        with path.open("wb") as file:
            write_npy(file, array)

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

    def check(self, samples: int) -> None:
        """Raises InvalidRequestError for an array of so many samples that cannot be stored."""

    def file_bytes(self, shape: Shape, itemsize: int) -> int:
        """Returns the bytes that an output takes before it is compressed."""
        return math.prod(shape) * itemsize


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


@contextmanager
def _durable(path: Path, mode: str) -> Iterator[BinaryIO]:
    """Opens a file, and sees to it that what was written survives a power failure."""
    with open(path, mode) as file:
        yield file  # type: ignore[misc] # every mode is binary
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
