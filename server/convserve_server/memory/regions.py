"""The regions of memory that callers share with the server, of whichever kind, within one budget a kind."""

from __future__ import annotations

import threading
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
    """Registered regions by key. Its methods may be called from any thread."""

    def __init__(
        self, max_bytes: int, max_regions: int, is_abandoned: Callable[[AnyRegion, bool], bool] = lambda *_: False
    ) -> None:
        """Starts without any. Abandoned regions are unregistered where there is no room for another.

        `is_abandoned` is told, too, whether there is none for a caller without any, who asks for half of all at most.
        """
        self._is_abandoned, self._counts, self._bytes = is_abandoned, Shares(max_regions), Shares(max_bytes)
        self._lock = threading.Lock()
        self._regions: dict[Key, tuple[AnyRegion, str]] = {}  # with the names of callers

    def register(self, key: Key, region: AnyRegion, caller: str = "") -> None:
        """Adds a region, of which a caller that has a name may have its share.

        Raises KeyError if the key is taken or OverloadedError if there is no room for it.
        """
        with self._lock:
            if key in self._regions:
                raise KeyError(key)
            if not self._has_room(region.size, caller):
                is_full = 2 * region.size <= self._bytes.total and not self._has_room(region.size, _ANOTHER)
                for each in [each for each, (held, _) in self._regions.items() if self._is_abandoned(held, is_full)]:
                    self._remove(each)
            if not self._has_room(region.size, caller):
                text = (
                    f"Expected at most {self._counts.total} regions of {self._bytes.total} bytes together, the "
                    "server's --shared-memory-bytes, of which a caller may have half of what is left. Received one of "
                    f"{region.size} more: unregister some, or ask the operator to raise it."
                )
                raise OverloadedError(text)
            self._regions[key] = region, caller
            self._counts.take(caller)
            self._bytes.take(caller, region.size)

    def unregister(self, keys: Iterable[Key]) -> None:
        """Removes regions; it ignores keys that are not registered."""
        with self._lock:
            for key in keys:
                self._remove(key)

    def get(self, key: Key) -> AnyRegion | None:
        """Returns a region, or None."""
        held = self._regions.get(key)
        return held and held[0]

    def all(self) -> dict[Key, AnyRegion]:
        """Returns all regions by their keys."""
        with self._lock:
            return {key: region for key, (region, _) in self._regions.items()}

    def _has_room(self, size: int, caller: str) -> bool:
        return self._counts.fits(caller) and self._bytes.fits(caller, size)

    def _remove(self, key: Key) -> None:
        if key in self._regions:
            region, caller = self._regions.pop(key)
            self._counts.give_back(caller)
            self._bytes.give_back(caller, region.size)


def is_within(region: Region, offset: int, size: int) -> bool:
    """Returns whether so many bytes from an offset on are in a region."""
    return 0 <= offset <= region.size - size
