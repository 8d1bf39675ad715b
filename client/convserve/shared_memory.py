"""Memory that this process shares with a server on the same machine, so that tensors don't cross a connection.

How regions are made and handed over is written at SharedMemory in proto/convserve/v1/tensor.proto. Regions are kept for
further calls, because new pages cost more than what is written to them.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import socket
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from convserve.tensor import Array
from convserve.v1 import tensor_pb2

SUFFIX = ".shared-memory"
"""What a Unix socket's path is followed by in the path of the socket that takes regions."""
NAME_BYTES = 16
ALIGNMENT = 64
"""What an array's place in a region is a multiple of, in bytes; TensorFlow computes on such arrays where they are."""

_SMALLEST_REGION = 2**16
_LONGEST_ANSWER_S = 5.0


class _Forks:
    """How often this process has forked."""

    count = 0

    @classmethod
    def add(cls) -> None:
        cls.count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_Forks.add)


class Region:
    """A piece of memory that a server maps too.

    Attributes:
        name: By which the server knows it.
        size: Its length in bytes.
        forks: How often this process had forked when the region was taken into use.
    """

    def __init__(self, size: int) -> None:
        """Makes a region; raises OSError where there is no memory for it."""
        import fcntl  # not on every system, as little as memfd_create

        self.name = secrets.token_bytes(NAME_BYTES)
        self.size = size
        self.descriptor = os.memfd_create("convserve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._shared = mmap.mmap(self.descriptor, size, mmap.MAP_SHARED)
            # For results. What their holder writes there stays in this process, as in any array.
            self._private = mmap.mmap(self.descriptor, size, mmap.MAP_PRIVATE)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.forks = _Forks.count

    def handed_over(self) -> None:
        """Lets go of the descriptor; the maps stay."""
        os.close(self.descriptor)

    def place(self, offset: int = 0) -> tensor_pb2.SharedMemory:
        """Returns the contract's message of a place in this region."""
        return tensor_pb2.SharedMemory(region=self.name, offset_bytes=offset)

    def shared(self) -> Array:
        """Returns the bytes; what is written there, the server sees."""
        return np.frombuffer(self._shared, np.uint8)

    def written(self) -> Array:
        """Returns the bytes that the server wrote, without what the holder of an earlier result wrote over them."""
        self._private.madvise(mmap.MADV_DONTNEED)
        return np.frombuffer(self._private, np.uint8)


class SharedMemory:
    """The regions that this process shares with one server. It may be shared by threads."""

    def __init__(self, addresses: Sequence[str], most_unused_bytes: int = 2**30) -> None:
        """Connects to the first socket that answers.

        Args:
            addresses: Paths of Unix sockets; names in the abstract namespace begin with a zero byte.
            most_unused_bytes: How much memory is kept for further calls.

        Raises:
            OSError: If none answers, or this system has no such memory.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        self._socket = _connected(addresses)
        self._most_unused_bytes = most_unused_bytes
        self._lock = threading.Lock()
        self._unused: list[Region] = []
        # A finalizer may run anywhere, even inside the lock, so it does no more than an append.
        self._returned: deque[Region] = deque()
        self._lent: dict[int, Region] = {}
        self._process = os.getpid()
        self.lost = False

    def region(self, size: int) -> Region:
        """Returns a region of at least so many bytes that nobody else uses; it is to be given back.

        Raises:
            OSError: If there is no memory for it, or the server does not take it.
        """
        with self._lock:
            self._sort_returned()
            fitting = [each for each in self._unused if size <= each.size <= 4 * max(size, _SMALLEST_REGION)]
            if fitting:
                found = min(fitting, key=lambda each: each.size)
                self._unused.remove(found)
                found.forks = _Forks.count
                return found
            made = Region(_rounded(size))
            try:
                if not self._told(made.name, made.descriptor):
                    raise OSError("the server does not take the region")
            finally:
                made.handed_over()
            return made

    def give_back(self, region: Region) -> None:
        """Keeps a region for further calls."""
        self._returned.append(region)

    def discard(self, region: Region) -> None:
        """Lets go of a region that the server may still write to."""
        with self._lock, suppress(OSError):  # the server is gone, and with it what it knew
            self._forget(region)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Returns an uninitialized array, shape and dtype as given, which is sent without being copied.

        Raises:
            OSError: As `region`.
        """
        region = self.region(max(1, math.prod(shape) * dtype.itemsize))
        root = region.shared()
        key = id(root)
        self._lent[key] = region
        # The region returns when the last array on it is gone.
        weakref.finalize(root, self._ended, key, region).atexit = False
        return _as_array(root, shape, dtype)

    def result(self, region: Region, shape: Sequence[int], dtype: Any) -> Array:
        """Returns what a server has written at a region's beginning; the region returns with the array's end."""
        root = region.written()
        weakref.finalize(root, self._returned.append, region).atexit = False
        return _as_array(root, shape, dtype)

    def place_of(self, array: Array) -> tensor_pb2.SharedMemory | None:
        """Returns where an array is that `empty` made, or that is a part of one; None for any other."""
        root: Any = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        region = self._lent.get(id(root))
        offset = 0 if region is None else array.ctypes.data - root.ctypes.data
        return region.place(offset) if region is not None and offset % ALIGNMENT == 0 else None

    def close(self) -> None:
        """Ends the sharing. Arrays that are still held stay what they are."""
        self.lost = True
        self._socket.close()
        self._unused.clear()

    def _ended(self, key: int, region: Region) -> None:
        del self._lent[key]
        self._returned.append(region)

    def _sort_returned(self) -> None:
        while self._returned:
            region = self._returned.popleft()
            # What was held at a fork, the other process may hold still.
            if region.forks == _Forks.count:
                self._unused.append(region)
            else:
                self._forget(region)
        while sum(each.size for each in self._unused) > self._most_unused_bytes:
            self._forget(self._unused.pop(0))

    def _forget(self, region: Region) -> None:
        if not self.lost and self._process == os.getpid():
            self._told(region.name, None)

    def _told(self, name: bytes, descriptor: int | None) -> bool:
        try:
            if descriptor is None:
                self._socket.send(name)
            else:
                socket.send_fds(self._socket, [name], [descriptor])
            answer = self._socket.recv(1)
        except OSError:
            self.lost = True
            raise
        if not answer:
            self.lost = True
        return answer == b"\1"


def _connected(addresses: Sequence[str]) -> socket.socket:
    failure = OSError("no address")
    for address in addresses:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(_LONGEST_ANSWER_S)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _rounded(size: int) -> int:
    """Returns a size up to an eighth above, so that a region serves calls of almost the same size."""
    step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 4))
    return max(_SMALLEST_REGION, -(-size // step) * step)


def _as_array(root: Array, shape: Sequence[int], dtype: Any) -> Array:
    size = math.prod(shape) * dtype.itemsize
    array: Array = root[:size].view(dtype).reshape(shape)
    return array
