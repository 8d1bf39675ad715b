"""The regions of memory that callers share with the server, of whichever kind, within one budget a kind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from convserve.errors import OverloadedError


class Region(Protocol):
    """Memory of so many bytes that a caller has registered; a call that uses it keeps it, unregistered or not."""

    @property
    def size(self) -> int: ...  # noqa: D102


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
        self._max_bytes, self._max_regions, self._is_abandoned = max_bytes, max_regions, is_abandoned
        self._lock = threading.Lock()
        self._regions: dict[Key, tuple[AnyRegion, str]] = {}  # with the names of callers

    def register(self, key: Key, region: AnyRegion, caller: str = "") -> None:
        """Adds a region. Afterwards at least as much is left as its caller has, if that has a name.

        Raises KeyError if the key is taken or OverloadedError if there is no room for it.
        """
        with self._lock:
            if key in self._regions:
                raise KeyError(key)
            if not self._has_room(region.size, caller):
                is_full = 2 * region.size <= self._max_bytes and not self._has_room(region.size, caller, is_first=True)
                kept = {key: held for key, held in self._regions.items() if not self._is_abandoned(held[0], is_full)}
                self._regions = kept
            if not self._has_room(region.size, caller):
                text = (
                    f"Expected at most {self._max_regions} regions of {self._max_bytes} bytes together, the server's "
                    f"--shared-memory-bytes, of which a caller may have half of what is left. Received one of "
                    f"{region.size} more: unregister some, or ask the operator to raise it."
                )
                raise OverloadedError(text)
            self._regions[key] = region, caller

    def unregister(self, keys: Iterable[Key]) -> None:
        """Removes regions; it ignores keys that are not registered."""
        with self._lock:
            for key in keys:
                self._regions.pop(key, None)

    def get(self, key: Key) -> AnyRegion | None:
        """Returns a region, or None."""
        held = self._regions.get(key)
        return held and held[0]

    def all(self) -> dict[Key, AnyRegion]:
        """Returns all regions by their keys."""
        with self._lock:
            return {key: region for key, (region, _) in self._regions.items()}

    def _has_room(self, size: int, caller: str, *, is_first: bool = False) -> bool:
        """Returns whether a caller may have another region, or might if it were its first."""
        sizes = [size, *(region.size for region, _ in self._regions.values())]
        others = () if is_first else (region.size for region, whose in self._regions.values() if whose == caller)
        own = [size, *others] if caller else []
        left_regions, left_bytes = self._max_regions - len(sizes), self._max_bytes - sum(sizes)
        return len(own) <= left_regions >= 0 and sum(own) <= left_bytes >= 0


def is_within(region: Region, offset: int, size: int) -> bool:
    """Returns whether so many bytes from an offset on are in a region."""
    return 0 <= offset <= region.size - size
