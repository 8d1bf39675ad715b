"""Bytes that admitted calls share: how many are left, and whose the others are."""

from __future__ import annotations

from collections import Counter

from convserve_server.scheduling.caller import Caller


class BytePool:
    """So many bytes. A user with several threads holds a lock around each method."""

    def __init__(self, max_bytes: int) -> None:
        """Starts with all of them left."""
        self.max_bytes, self.used = max_bytes, 0
        self._own: Counter[str] = Counter()  # by caller

    def fits(self, caller: Caller, size: int) -> bool:
        """Returns whether a caller may have so many now."""
        return self.used + size <= self.max_bytes and not self.exceeds_share(caller, size)

    def exceeds_share(self, caller: Caller, size: int) -> bool:
        """Returns whether a caller who has some would have more than would be left."""
        own = self._own[caller.name] if caller.is_identified else 0
        return own > 0 and own + size > self.max_bytes - self.used - size

    def take(self, caller: Caller, size: int) -> None:
        """Gives a caller so many."""
        self.used += size
        self._own[caller.name] += size

    def give_back(self, caller: Caller, size: int) -> None:
        """Takes so many back."""
        self.used -= size
        self._own[caller.name] -= size
        if not self._own[caller.name]:
            del self._own[caller.name]
