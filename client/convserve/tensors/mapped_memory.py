"""Memory of a file, mapped into this process."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from typing import Any

import numpy as np

from convserve.tensors.codec import Array

_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MAP_FAILED = ctypes.c_void_p(-1).value


class Map:
    """Memory of a file, of `size` bytes, mapped into this process; unlike mmap.mmap it keeps no descriptor open."""

    def __init__(self, descriptor: int, size: int, flags: int) -> None:
        """Maps a file's beginning to be read and written; raises OSError where that is not possible."""
        self.size = size
        self._c = _c_library()
        address = self._c.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
        if address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._address: int = address
        self._unmap = weakref.finalize(self, self._c.munmap, address, size)
        self._unmap.atexit = False
        # With this numpy makes arrays of it, which keep it.
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}

    def array(self) -> Array:
        """Returns the bytes, as an array that is new each time."""
        return np.asarray(self)

    def forget_changes(self) -> None:
        """Makes a private map show the file again."""
        self._c.madvise(self._address, self.size, mmap.MADV_DONTNEED)

    def keep(self) -> None:
        """Makes a private map stay what it is now, whatever else is written to the file."""
        self.array()[:: mmap.PAGESIZE] |= 0  # a page that is written to is this process' own

    def replace(self, other: Map) -> None:
        """Puts a private map where another map of its size is; this one is not to be used afterwards.

        Raises OSError where that is not possible.
        """
        flags = _MREMAP_MAYMOVE | _MREMAP_FIXED
        if self._c.mremap(self._address, self.size, self.size, flags, other._address) == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._unmap.detach()


@functools.cache
def _c_library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
    library.mremap.restype = ctypes.c_void_p
    library.mremap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    library.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
    library.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return library
