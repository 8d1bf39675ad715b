"""How many streams are open at once, and how many of them may be one caller's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from convserve.errors import OverloadedError
from convserve_server.auth.identity import Identity

_RETRY_S = 1.0


class StreamSlots:
    """Slots that callers share: one may have as many as are left, so that half of what is left is always for others."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()  # by caller

    @contextmanager
    def acquire(self, identity: Identity) -> Iterator[None]:
        """Takes a slot for the block. Raises OverloadedError if too few are left."""
        caller = identity.caller
        with self._lock:
            own, total = self._taken[caller], self._taken.total()
            left = self._slots - total
            if own >= left if identity.is_one_caller else not left:
                text = (
                    f"Expected a server with room for one more stream. Received one while {total} of {self._slots} are "
                    f"open, {own} of them yours: put more items into one, or retry."
                )
                raise OverloadedError(text, retry_after_s=_RETRY_S)
            self._taken[caller] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[caller] -= 1
                self._taken += Counter()  # which drops callers without any
