"""Ends calls whose callers are too slow to send or fetch a tensor, where others wait for the memory that these keep."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

log = logging.getLogger("convserve")

# What a caller has time for: seconds, and those that the bytes of its call take at a rate.
ANSWER = 5.0, 20e6  # a single answer
PIECES = 10.0, 2e6  # of an item of a stream: its input's or its output's, which slow networks carry


class _Wait(NamedTuple):
    size: int  # of the call's memory
    until: float
    is_active: Callable[[], bool]
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
        time_for: tuple[float, float],
        is_active: Callable[[], bool],
        end: Callable[[], object],
    ) -> None:
        """Begins the wait for its caller of a call that has so many bytes, which `end` ends while it is active."""
        seconds, bytes_per_s = time_for
        with self._lock:
            self._waits[call] = _Wait(size, self._clock() + seconds + size / bytes_per_s, is_active, end)

    def forget(self, call: object) -> None:
        """Ends a call's wait, if there is one."""
        with self._lock:
            self._waits.pop(call, None)

    def end_late(self) -> None:
        """Ends the calls that have waited for too long."""
        with self._lock:
            now = self._clock()
            late = [wait for wait in self._waits.values() if wait.until < now and wait.is_active()]
        for wait in late:
            log.info("a call is given up: its caller is slow, and others wait for its %d bytes", wait.size)
            wait.end()
