"""Ends calls whose callers are too slow to send or fetch a tensor, where others wait for the memory that these keep."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from convserve_server.memory.shares import Shares

log = logging.getLogger("convserve")

# What a caller has time for: seconds, and those that the bytes of its call take at a rate.
ANSWER = 5.0, 20e6  # a single answer
PIECES = 10.0, 2e6  # of an item of a stream: its input's or its output's, which slow networks carry


class _Wait(NamedTuple):
    size: int  # of the call's memory
    pool: Shares  # which it is of
    until: float
    end: Callable[[], object]


class SlowCallers:
    """The calls that wait for their callers. Any thread may call its methods."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with none."""
        self._clock, self._lock = clock, threading.Lock()
        self._waits: dict[object, _Wait] = {}

    def expect(
        self,
        call: object,
        size: int,
        pool: Shares,
        time_for: tuple[float, float],
        end: Callable[[], object],
    ) -> None:
        """Begins the wait for its caller of a call that has so many bytes of a pool, and that `end` ends."""
        seconds, bytes_per_s = time_for
        with self._lock:
            self._waits[call] = _Wait(size, pool, self._clock() + seconds + size / bytes_per_s, end)

    def forget(self, call: object) -> None:
        """Ends a call's wait, if there is one."""
        with self._lock:
            self._waits.pop(call, None)

    def end_late(self, pool: Shares, wanted: int) -> None:
        """Ends the calls that have waited for too long, if a pool lacks bytes that are wanted and they have some."""
        if wanted <= pool.left:
            return
        with self._lock:
            now = self._clock()
            late = [call for call, wait in self._waits.items() if wait.pool is pool and wait.until < now]
            waits = [self._waits.pop(call) for call in late]
        for wait in waits:
            log.info("a call is given up: its caller is slow, and others wait for its %d bytes", wait.size)
            wait.end()
