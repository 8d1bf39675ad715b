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
        self, max_bytes: int, max_regions: int, is_abandoned: Callable[[AnyRegion], bool] = lambda _: False
    ) -> None:
        """Starts without any. Abandoned regions are unregistered where there is no room for another."""
        self._max_bytes, self._max_regions, self._is_abandoned = max_bytes, max_regions, is_abandoned
        self._lock = threading.Lock()
        self._regions: dict[Key, AnyRegion] = {}

    def register(self, key: Key, region: AnyRegion) -> None:
        """Adds a region. Raises KeyError if the key is taken or OverloadedError if there is no room for it."""
        with self._lock:
            if key in self._regions:
                raise KeyError(key)
            if not self._has_room(region.size):
                self._regions = {key: other for key, other in self._regions.items() if not self._is_abandoned(other)}
            if not self._has_room(region.size):
                text = (
                    f"Expected at most {self._max_regions} regions of {self._max_bytes} bytes together, the server's "
                    f"--shared-memory-bytes. Received one of {region.size} more: unregister some, or ask the operator "
                    "to raise it."
                )
                raise OverloadedError(text)
            self._regions[key] = region

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

    def _has_room(self, size: int) -> bool:
        taken = sum(region.size for region in self._regions.values())
        return len(self._regions) < self._max_regions and taken + size <= self._max_bytes


def is_within(region: Region, offset: int, size: int) -> bool:
    """Returns whether so many bytes from an offset on are in a region."""
    return 0 <= offset <= region.size - size
