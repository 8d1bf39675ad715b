"""A queue in which callers take turns: however many entries one of them has in it, the others' come up as often."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries that wait, each of them a caller's. A user with several threads holds a lock around each method."""

    def __init__(self) -> None:
        # By caller, the next one first; each caller's entries in the order of their arrival.
        self._entries: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        """Returns how many entries wait."""
        return sum(map(len, self._entries.values()))

    def append(self, caller: str, entry: T) -> None:
        """Adds a caller's entry behind the others of that caller."""
        self._entries.setdefault(caller, deque()).append(entry)

    def first(self) -> T | None:
        """Returns the next entry, which stays; None if the queue is empty."""
        return next(iter(self._entries.values()))[0] if self._entries else None

    def firsts(self) -> list[T]:
        """Returns the next entry of each caller."""
        return [entries[0] for entries in self._entries.values()]

    def pop(self) -> T | None:
        """Removes and returns the next entry, after which another caller is next; None if the queue is empty."""
        return self.take(next(iter(self._entries))) if self._entries else None

    def take(self, caller: str) -> T:
        """Removes and returns the next entry of a caller that has one, who is the last to come up again."""
        entries = self._entries[caller]
        entry = entries.popleft()
        if entries:
            self._entries.move_to_end(caller)
        else:
            del self._entries[caller]
        return entry

    def discard(self, caller: str, entry: T) -> bool:
        """Removes a caller's entry without a change of whose turn it is. Returns whether it was there."""
        entries = self._entries.get(caller)
        if entries is None or entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._entries[caller]
        return True
