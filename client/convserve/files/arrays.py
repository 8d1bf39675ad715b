"""Arrays in files: NumPy's .npy and .npz, read without ever unpickling."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import InvalidRequestError, InvalidTensorError, short_repr
from convserve.tensors.codec import Array

ARRAY_SUFFIXES = (".npy", ".npz")
"""How the names of the files that `load_array` reads end."""


def load_array(path: str | Path, field: str = "input") -> Array:
    """Returns the array in `file.npy`, the only one in `file.npz`, or the one that `file.npz:name` chooses.

    Raises InvalidTensorError for the field, if the file cannot be read, holds Python objects, or needs a name.
    """
    file, chosen = split_member(str(path))
    with _loaded(file, field) as loaded:
        if isinstance(loaded, np.lib.npyio.NpzFile):
            return np.asarray(loaded[_member(loaded.files, chosen, file, field)])
        if chosen is not None:
            raise InvalidTensorError.for_field(field, "a .npz archive before ':'", f"{file!r}, which is a .npy file")
        return np.asarray(loaded)


def names_in(path: str | Path) -> list[str]:
    """Returns the names of the arrays in a .npz file; raises InvalidTensorError if it is something else."""
    with _loaded(str(path), "input") as loaded:
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InvalidTensorError.for_field("input", "a .npz archive", f"{str(path)!r}, which is a .npy file")
        return list(loaded.files)


def map_array(path: str | Path, field: str = "input") -> np.memmap[Any, Any]:
    """Returns the array in a .npy file as a memory map; raises as `load_array` does."""
    with _wrap_read_errors(str(path), field):
        return np.lib.format.open_memmap(path, mode="r")


def mapped_rows(array: np.memmap[Any, Any], start: int, stop: int) -> Array:
    """Returns `array[start:stop]` of what `map_array` returned, in a mapping of its own.

    A slice of the whole mapping would keep every page in memory that was ever read through it. InvalidTensorError is
    raised if the file has become shorter.
    """
    file: Any = array.filename  # NumPy's types allow None, for an array in no file
    with _wrap_read_errors(str(file), "input"):
        rows: Array
        if not array.flags.c_contiguous:  # Fortran's order: a row's elements lie all over the file
            rows = np.memmap(file, array.dtype, "r", array.offset, array.shape, order="F")
            return np.ascontiguousarray(rows[start:stop])
        offset = array.offset + start * array.dtype.itemsize * math.prod(array.shape[1:])
        return np.memmap(file, array.dtype, "r", offset, (stop - start, *array.shape[1:]))


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
    """Writes an array as a .npy file. bfloat16, which the format cannot name, is written as float32, without loss.

    Raises InvalidRequestError if the file cannot be written.
    """
    try:
        with Path(path).open("wb") as file:
            np.save(file, storable(array), allow_pickle=False)
    except OSError as error:
        raise unwritable("output", path, error) from error


def storable(array: Array) -> Array:
    """Returns an array as NumPy's formats can name it: bfloat16 as float32, without loss."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def check_destination(path: str | Path, suffixes: Sequence[str], field: str) -> None:
    """Raises InvalidRequestError if a file that is to be written has another suffix, or no folder to be in."""
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        expected = f"a file name that ends in {' or '.join(suffixes)}"
    elif file.is_dir() or not file.parent.is_dir():
        expected = "a file in a folder that exists"
    else:
        return
    raise InvalidRequestError.for_field(field, expected, short_repr(str(path)))


def unwritable(field: str, path: str | Path, error: OSError) -> InvalidRequestError:
    """Returns the error that says why a file could not be written."""
    received = f"{short_repr(str(path))}: {error.strerror or error}"
    return InvalidRequestError.for_field(field, "a file that can be written", received)


@contextmanager
def _loaded(file: str, field: str) -> Iterator[Any]:
    """Opens an array or an archive of arrays."""
    # Given the path, NumPy leaks the open file where the archive is broken.
    with _wrap_read_errors(file, field), Path(file).open("rb") as opened:
        yield np.load(opened, allow_pickle=False)


@contextmanager
def _wrap_read_errors(file: str, field: str) -> Iterator[None]:
    """Turns what NumPy and the system raise in the block into an InvalidTensorError that names the file."""
    try:
        yield
    except OSError as error:
        received = f"{file!r}: {error.strerror or error}"
        raise InvalidTensorError.for_field(field, "a file that can be read", received) from error
    except InvalidTensorError:  # our own refusals, which are ValueErrors too
        raise
    except MemoryError as error:
        raise InvalidTensorError.for_field(field, "an array that fits into memory", f"{file!r}: {error}") from error
    except (ValueError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        # numpy suggests allow_pickle=True for an unknown format, which would be bad advice: unpickling runs code.
        pickled = "Object arrays" in str(error) or "Python objects" in str(error)
        problem = "an array of Python objects" if pickled else "one that is broken, or that is not NumPy's"
        raise InvalidTensorError.for_field(field, "a .npy or .npz file of numbers", f"{file!r}: {problem}") from error


def split_member(path: str) -> tuple[str, str | None]:
    """Splits `file.npz:name`. Only a colon after .npz counts: others belong to the path, such as a drive's."""
    file, separator, name = path.rpartition(".npz:")
    return (f"{file}.npz", name) if separator else (path, None)


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
