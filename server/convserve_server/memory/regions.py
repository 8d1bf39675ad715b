"""The regions of memory that callers share with the server, of whichever kind, within one budget a kind."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from convserve.errors import OverloadedError
from convserve_server.memory.shares import Shares


class Region(Protocol):
    """Memory of so many bytes that a caller has registered; a call that uses it keeps it, unregistered or not."""

    @property
    def size(self) -> int: ...  # noqa: D102


_ANOTHER = "\0"  # a caller that has none

Key = TypeVar("Key")
AnyRegion = TypeVar("AnyRegion", bound=Region)


class RegionTable(Generic[Key, AnyRegion]):
    """Registered regions by key, each of which counts until nobody has it. Any thread may call its methods."""

    def __init__(
        self, max_bytes: int, max_regions: int, is_abandoned: Callable[[AnyRegion, bool], bool] = lambda *_: False
    ) -> None:
        """Starts without any. Abandoned regions are unregistered where there is no room for another.

        `is_abandoned` is told, too, whether there is none for a caller without any, who asks for half of all at most.
        """
        self._is_abandoned, self._counts, self._bytes = is_abandoned, Shares(max_regions), Shares(max_bytes)
        self._lock = threading.Lock()
        self._regions: dict[Key, AnyRegion] = {}
        # Callers and sizes of regions that are gone. Not given back at once, as a region may go with the lock held.
        self._gone: deque[tuple[str, int]] = deque()

    def register(self, key: Key, region: AnyRegion, caller: str = "") -> None:
        """Adds a region, of which a caller that has a name may have its share.

        Raises KeyError if the key is taken or OverloadedError if there is no room for it.
        """
        with self._lock:
            if key in self._regions:
                raise KeyError(key)
            if not self._has_room(region.size, caller):
                is_full = 2 * region.size <= self._bytes.total and not self._has_room(region.size, _ANOTHER)
                for each in [each for each, held in self._regions.items() if self._is_abandoned(held, is_full)]:
                    del self._regions[each]
            if not self._has_room(region.size, caller):
                text = (
                    f"Expected at most {self._counts.total} regions of {self._bytes.total} bytes together, the "
                    "server's --shared-memory-bytes, of which a caller may have half of what is left. Received one of "
                    f"{region.size} more: unregister some, or ask the operator to raise it."
                )
                raise OverloadedError(text)
            self._regions[key] = region
            self._counts.take(caller)
            self._bytes.take(caller, region.size)
            weakref.finalize(region, self._gone.append, (caller, region.size)).atexit = False

    def unregister(self, keys: Iterable[Key]) -> None:
        """Removes regions; it ignores keys that are not registered."""
        with self._lock:
            for key in keys:
                self._regions.pop(key, None)

    def get(self, key: Key) -> AnyRegion | None:
        """Returns a region, or None."""
        return self._regions.get(key)

    def all(self) -> dict[Key, AnyRegion]:
        """Returns all regions by their keys."""
        with self._lock:
            return dict(self._regions)

    def _has_room(self, size: int, caller: str) -> bool:
        while self._gone:
            name, given_back = self._gone.popleft()
            self._counts.give_back(name)
            self._bytes.give_back(name, given_back)
        return self._counts.fits(caller) and self._bytes.fits(caller, size)


def is_within(region: Region, offset: int, size: int) -> bool:
    """Returns whether so many bytes from an offset on are in a region."""
    return 0 <= offset <= region.size - size
