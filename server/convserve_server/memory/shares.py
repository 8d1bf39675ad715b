"""What callers share, be it slots or bytes: however much one of them takes, half of what is left is for others."""

from __future__ import annotations

from collections import Counter

RESERVE, SMALL = 16, 256
"""Parts of all bytes: those that small users have to themselves, and what a small one takes at most."""


class Shares:
    """So many of something. A user with several threads holds a lock around each method."""

    def __init__(self, total: int) -> None:
        """Starts with all of them left."""
        self.total, self.used = total, 0
        self.own: Counter[str] = Counter()  # by caller

    @property
    def left(self) -> int:
        """How many nobody has."""
        return self.total - self.used

    def sharer(self, caller: str) -> str:
        """Returns a caller that is to leave a share to others: none, "", as long as it has nothing."""
        return caller if self.own[caller] else ""

    def fits(self, caller: str, size: int = 1) -> bool:
        """Returns whether a caller may have so many more now; "" is for callers that cannot be told apart."""
        return size <= self.left and not self.exceeds(caller, size)

    def exceeds(self, caller: str, size: int = 1) -> bool:
        """Returns whether a caller would have more than half, rounded up, of what the others leave."""
        return bool(caller) and self.own[caller] + 2 * size > self.left + 1

    def copy(self) -> Shares:
        """Returns a copy, in which one can see what would fit."""
        copied = Shares(self.total)
        copied.used, copied.own = self.used, self.own.copy()
        return copied

    def take(self, caller: str, size: int = 1) -> None:
        """Gives a caller so many."""
        self.used += size
        self.own[caller] += size

    def give_back(self, caller: str, size: int = 1) -> None:
        """Takes so many back."""
        self.used -= size
        self.own[caller] -= size
        if not self.own[caller]:
            del self.own[caller]
