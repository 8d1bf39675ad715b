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
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np

from convserve.tensors.aligned import ALIGNMENT, address_of
from convserve.tensors.codec import Array
from convserve.tensors.mapped_memory import Map
from convserve.v1 import tensor_pb2

SUFFIX = ".shared-memory"
"""What a Unix socket's path is followed by in the path of the socket that takes regions."""
NAME_BYTES = 16
TICKET_BYTES = 32

_MIN_REGION = 2**16
_MAX_UNREAD_ANSWERS = 64  # fewer than a socket holds
_MAX_UNUSED_BYTES = 2**30  # that are kept for further calls
_MAX_REGION = 2**46  # what a process can map, and less than what a descriptor's size can be
MAX_ANSWER_S = 5.0
"""How long a server may take to answer on its socket, if the caller has as much time."""


class _Forks:
    """How often this process has forked, and what a fork is not to keep open or to write to."""

    count = 0
    connections: ClassVar[weakref.WeakSet[socket.socket]] = weakref.WeakSet()
    memories: ClassVar[weakref.WeakSet[SharedMemory]] = weakref.WeakSet()

    @classmethod
    def add(cls) -> None:
        cls.count += 1

    @classmethod
    def part(cls) -> None:
        # A server unmaps what is shared when the connection ends: when no process has it open any more.
        for connection in list(cls.connections):
            connection.close()
        for memory in list(cls.memories):
            memory.part()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_Forks.add, after_in_child=_Forks.part)


class Region:
    """A piece of memory that a server maps too.

    Attributes:
        name: By which the server knows it.
        size: Its length in bytes.
        private: A map in which what is written stays in this process.
        forks: How often this process had forked when the region was taken into use.
    """

    def __init__(self, size: int) -> None:
        """Makes a region; raises OSError where there is no memory for it."""
        import fcntl  # not on every system, as little as memfd_create

        if size > _MAX_REGION:
            raise OSError(f"no memory has {size} bytes")
        self.name = secrets.token_bytes(NAME_BYTES)
        self.size = size
        self.descriptor = os.memfd_create("convserve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._shared = Map(self.descriptor, size, mmap.MAP_SHARED)
            self.private = Map(self.descriptor, size, mmap.MAP_PRIVATE)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.forks = _Forks.count

    def place(self, offset: int = 0) -> tensor_pb2.SharedMemory:
        """Returns the contract's message of a place in this region."""
        return tensor_pb2.SharedMemory(region=self.name, offset_bytes=offset)

    def shared(self) -> Array:
        """Returns the bytes; what is written there, the server sees."""
        return self._shared.array()

    def withdraw(self) -> None:
        """Has arrays on `shared` stay as they are, in this process alone, whatever the server still writes."""
        self.private.forget_changes()
        self.private.keep()
        self.private.replace(self._shared)

    def part(self) -> None:
        """Has what this process writes to arrays on `shared` stay in this process; it takes no memory before that."""
        self.private.forget_changes()
        self.private.replace(self._shared)


class SharedMemory:
    """The regions that this process shares with one server. It may be shared by threads."""

    def __init__(self, addresses: Sequence[str], ticket: bytes, timeout: float = MAX_ANSWER_S) -> None:
        """Connects to the first socket that answers within so many seconds, and shows a ticket.

        Raises OSError if none of the addresses answers, or this system has no such memory.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        self._socket = _connected(addresses, timeout)
        weakref.finalize(self, self._socket.close)
        self._socket.send(ticket)
        # Answers that are read before that to the next region: to the ticket first, then to regions that were dropped.
        self._unread_answers = 0
        self._expect_answer()
        self._is_admitted = False
        self._wait_until = 0.0
        self._max_unused_bytes = _MAX_UNUSED_BYTES
        self._lock = threading.Lock()
        self._unused: list[Region] = []
        # A finalizer may run anywhere, even inside the lock, so it does no more than an append.
        self._returned: deque[Region] = deque()
        self._dropped: deque[bytes] = deque()
        self._lent: dict[int, Region] = {}
        self._process = os.getpid()
        self.used = False
        self.lost = False
        _Forks.memories.add(self)

    def region(self, size: int, timeout: float = MAX_ANSWER_S) -> Region:
        """Returns a region of at least `size` bytes that nobody else uses; `give_back` ends its use.

        Raises OSError if there is no memory for it, or the server does not take it in `timeout` seconds.
        """
        if not self._lock.acquire(timeout=timeout):
            raise TimeoutError("the server has not answered another call in time")
        try:
            self._wait_until = time.monotonic() + timeout
            self._sort_returned()
            fitting = [region for region in self._unused if size <= region.size <= 4 * max(size, _MIN_REGION)]
            if fitting:
                best = min(fitting, key=lambda region: region.size)
                self._unused.remove(best)
                best.forks = _Forks.count
                return best
            # Up to an eighth larger, so that it serves calls of almost the same size.
            step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 4))
            made = Region(max(_MIN_REGION, -(-size // step) * step))
            try:
                if not self._is_taken(made):
                    self._unused.clear()  # which may make room for it
                    self._send_dropped()
                    if not self._is_taken(made):
                        raise OSError("the server does not take the region")
            finally:
                os.close(made.descriptor)  # the maps stay
            self.used = True
            # The server learns of a region that is dropped before it is asked for the next one.
            weakref.finalize(made, self._dropped.append, made.name).atexit = False
            return made
        finally:
            self._lock.release()

    def give_back(self, region: Region) -> None:
        """Keeps a region for further calls."""
        self._returned.append(region)

    def discard(self, region: Region) -> None:
        """Drops a region that the server may still write to. It waits for nobody."""
        self._dropped.append(region.name)
        if self._lock.acquire(blocking=False):  # else the server learns of it before the next region
            try:
                self._wait_until = 0.0
                self._send_dropped()
            finally:
                self._lock.release()

    def empty(self, shape: Sequence[int], dtype: Any, timeout: float = MAX_ANSWER_S) -> Array:
        """Returns an uninitialized array, shape and dtype as given, whose elements cross no connection.

        Raises OSError: As `region`.
        """
        region = self.region(max(1, math.prod(shape) * dtype.itemsize), timeout)
        root = region.shared()
        key = id(root)
        self._lent[key] = region
        # The region returns when the last array on it is gone.
        weakref.finalize(root, self._end_loan, key).atexit = False
        return np.ndarray(shape, dtype, root)

    def result(self, region: Region, shape: Sequence[int], dtype: Any) -> Array:
        """Returns what a server has written at a region's beginning; the region returns with the array's end."""
        region.private.forget_changes()  # those of the holder of an earlier result
        root = region.private.array()
        weakref.finalize(root, self._returned.append, region).atexit = False
        return np.ndarray(shape, dtype, root)

    def place_of(self, array: Array) -> tensor_pb2.SharedMemory | None:
        """Returns where an array is that `empty` made, or that is a part of one; None for any other."""
        root = _root(array)
        region = self._lent.get(id(root))
        offset = 0 if region is None else address_of(array) - address_of(root)
        return region.place(offset) if region is not None and offset % ALIGNMENT == 0 else None

    def withdraw(self, array: Array) -> None:
        """Takes the memory of an array that has a place from the server, which may still write to it."""
        region = self._lent.pop(id(_root(array)), None)
        if region is not None:
            region.withdraw()
            self.discard(region)

    def part(self) -> None:
        """Leaves the memory of arrays that `empty` made to the process from which this one was forked."""
        while self._lent:
            with suppress(OSError):
                self._lent.popitem()[1].part()

    def _end_loan(self, key: int) -> None:
        region = self._lent.pop(key, None)
        if region is not None:
            self._returned.append(region)

    def close(self) -> None:
        """Ends the sharing. Arrays that are still held stay what they are."""
        self.lost = True
        if self._process != os.getpid():
            return  # the connection is the parent's
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # which ends a wait for an answer in another thread
        with self._lock:
            self._socket.close()
            self._unused.clear()

    def _sort_returned(self) -> None:
        while self._returned:
            # What was held at a fork, the other process may hold still: it is dropped.
            if self._returned[0].forks == _Forks.count:
                self._unused.append(self._returned[0])
            self._returned.popleft()
        while sum(region.size for region in self._unused) > self._max_unused_bytes:
            # So that one huge call now and then does not take the place of those that all others use.
            self._unused.remove(max(self._unused, key=lambda region: region.size))
        self._send_dropped()

    def _send_dropped(self) -> None:
        """Names the regions that were dropped to the server; most answers are read later."""
        while self._dropped and self._is_admitted and not self.lost:
            try:
                if self._unread_answers >= _MAX_UNREAD_ANSWERS:
                    self._read_answer()
                self._limit_wait()
                self._socket.send(self._dropped[0])
            except (BlockingIOError, TimeoutError):
                return  # the server has not answered, or not read, what was sent before
            except OSError:
                self.lost = True  # the server is gone, and with it what it knew
                return
            self._expect_answer()
            self._dropped.popleft()

    def _is_taken(self, region: Region) -> bool:
        """Hands a region over; returns whether the server takes it."""
        try:
            self._limit_wait()
            socket.send_fds(self._socket, [region.name], [region.descriptor])
            self._expect_answer()
            is_taken = False
            while self._unread_answers:
                is_taken = self._read_answer()
            return is_taken
        except (BlockingIOError, TimeoutError) as error:  # of this call's time
            self._dropped.append(region.name)
            self.lost = self.lost or time.monotonic() >= self._answer_due
            raise TimeoutError("the server has not answered in time") from error
        except OSError:
            self.lost = True
            raise

    def _expect_answer(self) -> None:
        if not self._unread_answers:
            self._answer_due = time.monotonic() + MAX_ANSWER_S
        self._unread_answers += 1

    def _read_answer(self) -> bool:
        self._limit_wait()
        answer = self._socket.recv(1)
        if not answer or not (self._is_admitted or answer == b"\1"):
            raise OSError("the server does not take the ticket")
        self._is_admitted = True
        self._unread_answers -= 1
        self._answer_due = time.monotonic() + MAX_ANSWER_S
        return answer == b"\1"

    def _limit_wait(self) -> None:
        self._socket.settimeout(max(0.0, self._wait_until - time.monotonic()))


def _connected(addresses: Sequence[str], timeout: float) -> socket.socket:
    failure = OSError("no address")
    for address in addresses:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            _Forks.connections.add(connection)
            return connection
    raise failure


def _root(array: Array) -> Any:
    """Returns the array on all of the memory of which an array is a part."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return root
