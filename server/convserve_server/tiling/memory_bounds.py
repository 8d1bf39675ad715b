"""How large a computation may be, as far as those that failed for want of memory have shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

_MAX_BOUNDS = 1000
_GROWTH = 64  # TensorFlow waits ten seconds for memory before it fails: a try must be rare


class MemoryBounds:
    """Bounds in bytes by key: a device and layers' configurations. Any thread may call its methods.

    A bound is lowered when a computation fails, and grows by a 64th with each call that it divides, since the memory
    may have been another process'. A key that never failed has none. Those used last are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bounds: OrderedDict[Hashable, int] = OrderedDict()

    def get(self, key: Hashable) -> int | None:
        """Returns a bound, or None."""
        if not self._bounds:  # almost always, and a key takes time to hash
            return None
        with self._lock:
            if key in self._bounds:
                self._bounds.move_to_end(key)
            return self._bounds.get(key)

    def lower(self, key: Hashable, bound: int) -> None:
        """Notes that computations of more bytes than this are not likely to fit."""
        with self._lock:
            self._bounds[key] = min(self._bounds.get(key, bound), bound)
            self._bounds.move_to_end(key)
            if len(self._bounds) > _MAX_BOUNDS:
                self._bounds.popitem(last=False)

    def widen(self, key: Hashable) -> None:
        """Notes that a call that a bound divided was computed."""
        with self._lock:
            if key in self._bounds:
                self._bounds[key] += self._bounds[key] // _GROWTH + 1
