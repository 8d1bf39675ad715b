"""Zarr, by the package of that name: `pip install 'convserve[zarr]'`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import needing, short_repr
from convserve.files.reading import unreadable, wrap_read_errors
from convserve.tensors.codec import Array

_EXPECTED = "a Zarr array or group that can be read"
_PLAIN: dict[str, Any] = {"scale_factor": 1, "add_offset": 0, "_FillValue": None, "missing_value": None}
_NANS = ("NaN", "AAAAAAAA+H8=")  # as JSON has it, the second by xarray


def zarr_package() -> Any:
    """Returns the package, or raises MissingDependencyError."""
    with needing("Reading and writing Zarr needs the package zarr: pip install 'convserve[zarr]'."):
        return importlib.import_module("zarr")


def arrays_in(path: Path) -> dict[str, Any]:
    """Returns the arrays of a Zarr group by their names in it, or a single array under the name "".

    Raises InvalidTensorError if it cannot be read.
    """
    zarr = zarr_package()
    with wrap_read_errors(path, "input", _EXPECTED):
        opened = zarr.open(str(path), mode="r")
        if isinstance(opened, zarr.Array):
            return {"": opened}
        members = opened.members(max_depth=None)
        return {name: array for name, array in sorted(members) if isinstance(array, zarr.Array)}


def read_rows(array: Any, path: Path, start: int | None, stop: int | None) -> Array:
    """Returns `array[start:stop]`, or raises InvalidTensorError."""
    with wrap_read_errors(path, "input", _EXPECTED):
        return np.asarray(array[start:stop])


def check_plain(array: Any, path: Path) -> None:
    """Raises InvalidTensorError for an array whose attributes say that its elements are not the values.

    They are packed by the CF conventions, as xarray does it, or some mean that there is no value. NaN stays NaN.
    """
    said = {name: array.attrs[name] for name in _PLAIN if name in array.attrs}
    # xarray writes _FillValue there in Zarr's version 2; 0 is what others fill with. NumPy's numbers have no JSON.
    if "_ARRAY_DIMENSIONS" in array.attrs and array.metadata.zarr_format == 2 and array.fill_value:
        said.setdefault("_FillValue", array.fill_value.item())
    odd = {name: value for name, value in said.items() if value not in (_PLAIN[name], *_NANS) and value == value}  # noqa: PLR0124
    if odd:
        received = f"{short_repr(odd)}; decode it first, for example with xarray.open_zarr"
        raise unreadable("an array whose elements are its values", path, received)
