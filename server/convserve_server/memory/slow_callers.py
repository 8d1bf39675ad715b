"""Ends calls whose callers are too slow to send or fetch a tensor, where others wait for the memory that these keep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from convserve_server.memory.shares import Shares

log = logging.getLogger("convserve")


class Pace(NamedTuple):
    """What a caller has time for: seconds, and those that bytes take at a rate."""

    seconds: float
    bytes_per_s: float

    def time_for(self, size: int) -> float:
        """Returns the seconds for so many bytes."""
        return self.seconds + size / self.bytes_per_s


ANSWER = Pace(5.0, 20e6)  # a single answer
PIECES = Pace(10.0, 2e6)  # of an item of a stream: its input's or its output's, which slow networks carry


class Wait(NamedTuple):
    """A call that waits for its caller, and has bytes of a pool."""

    caller: str
    size: int
    pool: Shares
    until: float
    end: Callable[[], object]


class SlowCallers:
    """The calls that wait for their callers. A user with several threads holds a lock around each method."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with none."""
        self._clock = clock
        self._waits: dict[object, Wait] = {}
        self._ending: dict[object, Wait] = {}  # those that were ended, and still have their bytes

    def expect(
        self, call: object, caller: str, size: int, pool: Shares, seconds: float, end: Callable[[], object]
    ) -> None:
        """Begins so many seconds' wait for the caller of a call, which has `size` bytes of a pool and `end` ends."""
        self._ending.pop(call, None)
        self._waits[call] = Wait(caller, size, pool, self._clock() + seconds, end)

    def forget(self, call: object) -> None:
        """Ends a call's wait, if there is one."""
        self._waits.pop(call, None)
        self._ending.pop(call, None)

    def late_for(self, pools: Sequence[Shares], size: int, fits: Callable[[Shares], bool]) -> list[Wait]:
        """Returns which calls are to be ended for one that lacks so many bytes, of any of some pools.

        No more than help it, those that are the latest. None, if it would not fit without them either, if its share
        alone keeps it waiting, or if it will fit a pool once those have given back their bytes that were ended before.
        """
        now = self._clock()
        for pool in (pool for pool in pools if size > pool.left):
            rest = pool.copy()
            for wait in self._ending.values():
                if wait.pool is pool:
                    rest.give_back(wait.caller, wait.size)
            if fits(rest):
                return []
            late = [(call, wait) for call, wait in self._waits.items() if wait.pool is pool and wait.until < now]
            late.sort(key=lambda each: each[1].until)
            for number, (_, wait) in enumerate(late, 1):
                rest.give_back(wait.caller, wait.size)
                if fits(rest):
                    ended = dict(each for each in reversed(late[:number]) if not _can_stay(each[1], rest, fits))
                    self._ending |= {call: self._waits.pop(call) for call in ended}
                    return list(ended.values())
        return []


def _can_stay(wait: Wait, rest: Shares, fits: Callable[[Shares], bool]) -> bool:
    """Returns whether another call fits beside this one, which is in the pool again then."""
    rest.take(wait.caller, wait.size)
    if not fits(rest):
        rest.give_back(wait.caller, wait.size)
        return False
    return True


def end(late: Iterable[Wait]) -> None:
    """Ends calls, and says so in the log. No lock is to be held: what ends frees its bytes."""
    for wait in late:
        try:
            wait.end()
        except Exception:  # the others are ended all the same
            log.exception("a call of a slow caller cannot be ended")
            continue
        log.info("a call is given up: its caller is slow, and others wait for its %d bytes", wait.size)
