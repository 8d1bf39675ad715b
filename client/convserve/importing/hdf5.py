"""HDF5 files from strangers, read with h5py: groups, arrays and texts that are in the file itself, and nothing else.

A file may name other files (external links, external storage, virtual arrays) and plugins (filters); each of these is
refused before libhdf5 would follow it. Damaged bytes are another matter: on a rare file libhdf5 itself loops or ends
the process, under Keras as here, which only a process of its own would bound.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from convserve.bfloat16 import float32_of_bits
from convserve.errors import MissingDependencyError, shown
from convserve.importing.untrusted import Budget, refusal
from convserve.tensor import Array

# Deflate, shuffle, Fletcher-32: those that are part of every libhdf5, so that no plugin is looked for.
_BUILT_IN_FILTERS = {1, 2, 3}


class Hdf5File:
    """A file in memory.

    Attributes:
        root: The outermost group.
    """

    def __init__(self, data: bytes, budget: Budget) -> None:
        """Opens a file.

        Args:
            data: The file's bytes.
            budget: What may be read, in arrays.

        Raises:
            OSError: If it is no HDF5 file.
            MissingDependencyError: Without h5py.
        """
        try:
            import h5py
        except ImportError as error:
            raise MissingDependencyError(
                "Reading .keras and .h5 files needs h5py: pip install 'convserve[import]'."
            ) from error
        self._h5py = h5py
        self._budget = budget
        self.root: Any = h5py.File(io.BytesIO(data), "r")

    def find(self, path: str) -> Any | None:
        """Returns the group or array under a path, or None if there is nothing.

        Raises:
            InvalidRequestError: If a link is on the way.
        """
        found = self.root
        for name in path.split("/"):
            if not isinstance(found, self._h5py.Group):
                return None
            link = found.get(name, getlink=True)
            if link is None:
                return None
            if not isinstance(link, self._h5py.HardLink):
                raise refusal("an HDF5 file without links", f"{shown(path)}, which is one")
            found = found[name]
        return found

    def array(self, path: str) -> Array | None:
        """Returns an array of floating-point numbers, or None if there is nothing under this path.

        bfloat16, of which HDF5 knows only the bits, becomes float32, without loss.

        Raises:
            InvalidRequestError: If it is something else, or not in the file itself.
        """
        found = self.find(path)
        if found is None:
            return None
        if not isinstance(found, self._h5py.Dataset):
            raise refusal("an array", f"{shown(path)}, which is none")
        if found.external or found.is_virtual:
            raise refusal("arrays that are in the file itself", f"{shown(path)}, which is in others")
        creation = found.id.get_create_plist()
        if not {creation.get_filter(index)[0] for index in range(creation.get_nfilters())} <= _BUILT_IN_FILTERS:
            raise refusal("arrays without filters of others' making", f"{shown(path)}, which has one")
        is_bfloat16 = found.dtype == np.dtype("V2") or found.attrs.get("dtype") == "bfloat16"
        if found.dtype.kind != "f" and not is_bfloat16:
            raise refusal("floating-point numbers", f"{shown(path)} of dtype {found.dtype}")
        self._budget.spend(found.size * found.dtype.itemsize, f"the array {shown(path)}")
        elements = found[()]
        if found.dtype == np.dtype("V2"):
            return float32_of_bits(np.ascontiguousarray(elements).view("<u2")).reshape(found.shape)
        return np.asarray(elements)

    def text(self, place: Any, name: str) -> str | None:
        """Returns an attribute that is a text, or None."""
        return "".join(_texts(place.attrs.get(name))[:1]) if name in place.attrs else None

    def texts(self, place: Any, name: str) -> list[str]:
        """Returns an attribute that is a list of texts; Keras splits a long one into `name0`, `name1` and so on."""
        if name in place.attrs:
            return _texts(place.attrs[name])
        found: list[str] = []
        part = 0
        while f"{name}{part}" in place.attrs:
            found += _texts(place.attrs[f"{name}{part}"])
            part += 1
        return found


def _texts(value: Any) -> list[str]:
    """Returns the texts of an attribute; none if it has other things, such as the numbers of an empty list."""
    listed = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    return [each.decode() if isinstance(each, bytes) else each for each in listed if isinstance(each, bytes | str)]
