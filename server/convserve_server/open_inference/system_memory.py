"""Regions of POSIX shared memory that callers on this machine have registered.

Unlike the memory of convserve's own clients (services/shared_memory.py), it has a name that anybody could pass, and
nobody can be kept from making it shorter. So:

* A region must belong to the user whose process the caller is, which Linux tells of a TCP connection within the
  machine, or, where it does not tell, as of a Unix socket, to the user that the server runs as.
* The server never maps it, as memory that is taken away under a map ends the process: it reads and writes the file, and
  finds out what is missing as an error.
* Names are looked up among POSIX shared memory alone, and only a regular file there is opened.
* Each caller with a token or certificate has regions of its own, and so has each user without: else one user could
  have the server read and write memory that is another's.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from convserve.errors import InvalidArgumentError, InvalidRequestError, short_repr
from convserve.tensors.codec import Array
from convserve_server.memory.regions import RegionTable, is_within
from convserve_server.open_inference.infer_tensors import Place

_FOLDER = "/dev/shm"  # noqa: S108 (where Linux has POSIX shared memory)
_KEY = re.compile(r"/?(?!\.\.?$)[^/\0]{1,250}")
_MAX_NAME = 1000
MAX_REGIONS = 1000
_ESTABLISHED = "01"
_IPV4_IN_IPV6 = "0000000000000000FFFF0000"
_IPV6_LOOPBACK = "00000000000000000000000001000000"
_NOBODY = -1


@dataclass(frozen=True, eq=False)
class Region:
    """A region. Its file is open for as long as anybody has this."""

    name: str  # its caller's
    key: str  # its POSIX name
    offset: int  # where it begins in the file, in bytes
    size: int  # bytes
    descriptor: int  # of the file
    peer: str = ""  # its caller's connection, if that can be told from others
    since: float = 0.0  # when it was registered, by the monotonic clock

    def __post_init__(self) -> None:
        """Has the file closed with the last reference, so that no call reads from another one of the same number."""
        weakref.finalize(self, os.close, self.descriptor)

    def read(self, place: Place, into: Array) -> None:
        """Fills a C-contiguous array with the bytes at a place; InvalidRequestError if the file does not have them."""
        begin = self._begin(place, into.nbytes)
        rest = into.reshape(-1).view(np.uint8).data
        while rest:
            count = os.preadv(self.descriptor, [rest], begin)
            if not count:
                raise self._short(place, begin + len(rest))
            rest, begin = rest[count:], begin + count

    def write(self, place: Place, array: Array) -> None:
        """Writes a C-contiguous array to a place; InvalidRequestError without room, or if it cannot be written to."""
        begin = self._begin(place, array.nbytes)
        rest = array.reshape(-1).view(np.uint8).data
        # Else the file would grow again, in memory that belongs to no budget.
        if os.fstat(self.descriptor).st_size < begin + len(rest):
            raise self._short(place, begin + len(rest))
        try:
            while rest:
                count = os.pwrite(self.descriptor, rest, begin)
                rest, begin = rest[count:], begin + count
        except OSError as error:  # sealed against it, or a machine without memory
            received = f"one that cannot: {error.strerror}"
            raise InvalidRequestError.for_field(place.field, "a region that can be written to", received) from None

    def _begin(self, place: Place, size: int) -> int:
        size = max(size, place.size)
        if not is_within(self, place.offset, size):
            expected = f"{size} bytes from shared_memory_offset on, within the region {self.name!r} of {self.size}"
            raise InvalidRequestError.for_field(place.field, expected, f"shared_memory_offset={place.offset}")
        return self.offset + place.offset

    def _short(self, place: Place, end: int) -> InvalidArgumentError:
        expected = f"shared memory {self.key!r} of at least {end} bytes"
        return InvalidRequestError.for_field(place.field, expected, "a shorter one: it was truncated")


class SystemMemory:
    """The regions that are registered. Its methods may be called from any thread."""

    def __init__(self, max_bytes: int, max_regions: int = MAX_REGIONS) -> None:
        self._regions: RegionTable[tuple[str, str], Region] = RegionTable(max_bytes, max_regions, _is_abandoned)

    def register(
        self, owner: str, user: int, name: str, key: str, offset: int, size: int, caller: str = "", peer: str = ""
    ) -> None:
        """Takes an owner's region: so many bytes from an offset on, of a user's shared memory that has this POSIX name.

        It counts as the caller's; where there is no room at all, those whose connection is gone are unregistered.
        Raises OverloadedError as `RegionTable.register`, or InvalidRequestError if name or key are wrong, the name is
        taken, or the user has no such memory.
        """
        if not 0 < len(name) <= _MAX_NAME:
            raise InvalidRequestError.for_field("name", f"1 to {_MAX_NAME} characters", f"{len(name)}")
        if not _KEY.fullmatch(key):
            expected = "a name of POSIX shared memory: '/' and up to 250 characters without it"
            raise InvalidRequestError.for_field("key", expected, short_repr(key))
        if not size:
            raise InvalidRequestError.for_field("byte_size", "a number above 0", "0")
        region = Region(name, key, offset, size, _opened(key, user), peer, time.monotonic())
        there = os.fstat(region.descriptor).st_size
        if offset + size > there:
            expected = f"at most {there} bytes with the offset, as {key} has"
            raise InvalidRequestError.for_field("byte_size", expected, f"{offset + size}")
        try:
            self._regions.register((owner, name), region, caller)
        except KeyError:
            expected = "one that is not registered yet, or was unregistered"
            raise InvalidRequestError.for_field("name", expected, short_repr(name)) from None

    def unregister(self, owner: str, name: str) -> None:
        """Removes an owner's region, or all of them if the name is empty. It ignores one that is not registered."""
        keys = [(owner, name)] if name else [key for key in self._regions.all() if key[0] == owner]
        self._regions.unregister(keys)

    def regions(self, owner: str, name: str = "") -> list[Region]:
        """Returns an owner's regions, or the one of this name; InvalidRequestError if there is none."""
        if name:
            return [self.region(owner, name, "name")]
        return [region for (whose, _), region in self._regions.all().items() if whose == owner]

    def region(self, owner: str, name: str, field: str) -> Region:
        """Returns an owner's region, or raises an InvalidRequestError that calls the name `field`."""
        region = self._regions.get((owner, name))
        if region is None:
            expected = "the name of a registered region of system shared memory"
            raise InvalidRequestError.for_field(field, expected, short_repr(name))
        return region


def _is_abandoned(region: Region, is_full: bool) -> bool:
    """Returns whether a region's name is gone, or where there is no room for anybody its caller's connection is."""
    if not os.fstat(region.descriptor).st_nlink:
        return True
    second = int(time.monotonic())
    # A connection of this second may be newer than what is known of the second.
    is_known = bool(region.peer) and region.since < second
    return is_full and is_known and not _rows_of(region.peer) & _established(second)


def recent_user_of(peer: str) -> int:
    """Returns what `user_of` does, or has done in this second: it takes longer than a small call.

    A second, because a port may be another user's next.
    """
    return _user_in(peer, int(time.monotonic()))


@lru_cache(maxsize=10_000)
def _user_in(peer: str, second: int) -> int:  # noqa: ARG001 (what was known in another second is not asked for)
    return user_of(peer)


def user_of(peer: str) -> int:
    """Returns the id of the user whose process a local peer, such as "ipv4:127.0.0.1:40000", is; or nobody's.

    Of a Unix socket it is the server's own user: the socket's permissions say who else may be it.
    """
    if peer.startswith("unix:"):
        return os.geteuid()
    users = {user for row, user in _connections() if row in _rows_of(peer)}
    # Processes of two users may call two servers from one port.
    return users.pop() if len(users) == 1 else _NOBODY


@lru_cache(maxsize=1)
def _established(second: int) -> set[str]:  # noqa: ARG001 (as above)
    return {row for row, _ in _connections()}


def _rows_of(peer: str) -> set[str]:
    """Returns how Linux writes the address of a local peer on TCP."""
    host, _, port = peer.rpartition(":")
    if not host.startswith("ipv4:"):
        return {f"{_IPV6_LOOPBACK}:{int(port):04X}"}
    address = socket.inet_aton(host.removeprefix("ipv4:"))[::-1].hex().upper()
    return {f"{address}:{int(port):04X}", f"{_IPV4_IN_IPV6}{address}:{int(port):04X}"}


def _connections() -> Iterator[tuple[str, int]]:
    """Yields the near address of each established connection of this machine, and its user's id."""
    tables = "".join(Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
    for fields in map(str.split, tables.splitlines()):
        if fields[3] == _ESTABLISHED:
            yield fields[1], int(fields[7])


def _opened(key: str, user: int) -> int:
    expected = "the name of POSIX shared memory that can be read and written to, and belongs to the caller's user"
    try:
        path = f"{_FOLDER}/{key.removeprefix('/')}"
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):  # one text for all, so that nobody learns what others have
        raise InvalidRequestError.for_field("key", expected, short_repr(key)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != user:
        os.close(descriptor)
        raise InvalidRequestError.for_field("key", expected, short_repr(key))
    return descriptor
