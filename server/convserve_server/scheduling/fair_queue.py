"""A line in which callers take turns: however many entries one of them has there, the others' come up as often."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries that wait. Whoever uses it from several threads holds a lock around it."""

    def __init__(self) -> None:
        """Starts empty."""
        # By caller, the one whose turn it is first; each caller's entries in the order of their arrival.
        self._entries: OrderedDict[str, deque[T]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """Returns how many entries wait."""
        return self._length

    def append(self, caller: str, entry: T) -> None:
        """Lets a caller's entry wait."""
        self._entries.setdefault(caller, deque()).append(entry)
        self._length += 1

    def first(self) -> T | None:
        """Returns the entry whose turn it is; None if none waits."""
        return next(iter(self._entries.values()))[0] if self._entries else None

    def take_first(self) -> T | None:
        """Takes the entry whose turn it is out of the line; the next turn is another caller's, if one waits."""
        if not self._entries:
            return None
        caller, waiting = next(iter(self._entries.items()))
        entry = waiting.popleft()
        self._length -= 1
        if waiting:
            self._entries.move_to_end(caller)
        else:
            del self._entries[caller]
        return entry

    def discard(self, caller: str, entry: T) -> bool:
        """Takes a caller's entry out of the line, and leaves the turns as they are. Returns whether it was there."""
        waiting = self._entries.get(caller, ())
        if entry not in waiting:
            return False
        assert isinstance(waiting, deque)  # noqa: S101 (something was in it)
        waiting.remove(entry)
        self._length -= 1
        if not waiting:
            del self._entries[caller]
        return True
