"""How many calls may wait for their callers at once, and how many of them may be one caller's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convserve.errors import OverloadedError
from convserve_server.auth.identity import Identity
from convserve_server.memory.shares import Shares
from convserve_server.transport.idle_timeouts import Wait

_RETRY_S = 1.0
_YOUNG_S = 2.0  # in which an honest caller sends a message that is not large


class StreamSlots:
    """Slots of open streams."""

    def __init__(self, slots: int) -> None:
        self._slots, self._lock = Shares(slots), threading.Lock()

    @contextmanager
    def acquire(self, identity: Identity) -> Iterator[None]:
        """Takes a slot for the block. Raises OverloadedError if too few are left."""
        slots, caller = self._slots, identity.caller
        with self._lock:
            if not slots.fits(caller if identity.is_one_caller else ""):
                text = (
                    f"Expected a server with room for one more stream. Received one while {slots.used} of "
                    f"{slots.total} are open, {slots.own[caller]} of them yours: put more items into one, or retry."
                )
                raise OverloadedError(text, retry_after_s=_RETRY_S)
            slots.take(caller)
        try:
            yield
        finally:
            with self._lock:
                slots.give_back(caller)


class ReceivingSlots:
    """Slots of calls whose one message has not come yet, which with an honest caller takes little time.

    If all are taken, the caller that has most of them loses its oldest call to another's, but none its only call before
    an honest one had time to send it. So calls without a message keep nobody out for long, however many there are and
    wherever they come from.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._clock = slots, clock
        self._lock = threading.Lock()
        self._count = 0
        self._waits: dict[str, dict[Wait, float]] = {}  # by caller, with their times of beginning, the oldest first

    def take(self, identity: Identity, wait: Wait) -> None:
        """Takes a slot for a wait, until `give`. Raises OverloadedError if all are taken, and nobody has more."""
        with self._lock:
            late = self._oldest_of_most(identity) if self._count == self._slots else None
            self._waits.setdefault(identity.caller, {})[wait] = self._clock()
            self._count += 1
        if late is not None:
            late.abort()

    def give(self, identity: Identity, wait: Wait) -> None:
        """Gives back a slot, if it was not lost."""
        with self._lock:
            self._remove(identity.caller, wait)

    def _oldest_of_most(self, identity: Identity) -> Wait:
        """Removes the wait that loses its slot to a caller, and returns it."""
        caller = max(self._waits, key=lambda each: len(self._waits[each]))
        own, most = len(self._waits.get(identity.caller, ())), len(self._waits[caller])
        if own == most and identity.is_one_caller:
            text = (
                f"Expected a server that waits for fewer requests. Received a call without its message while {most} of "
                f"{self._slots} that are waited for are yours: send each with its call, and retry."
            )
            raise OverloadedError(text, retry_after_s=_RETRY_S)
        oldest, since = next(iter(self._waits[caller].items()))
        if most == 1 and self._clock() - since < _YOUNG_S:
            text = (
                f"Expected a server that waits for fewer requests. Received a call without its message while those of "
                f"{self._slots} others are on their way: retry."
            )
            raise OverloadedError(text, retry_after_s=_RETRY_S)
        self._remove(caller, oldest)
        return oldest

    def _remove(self, caller: str, wait: Wait) -> None:
        waits = self._waits.get(caller, {})
        if wait in waits:
            del waits[wait]
            self._count -= 1
            if not waits:
                del self._waits[caller]
