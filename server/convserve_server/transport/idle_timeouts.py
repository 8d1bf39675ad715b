"""Ends calls whose callers stop in the middle of what they send or fetch, so that none keeps a thread for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

log = logging.getLogger("convserve")


@dataclass(eq=False, slots=True)
class Wait:
    """A wait for a caller."""

    abort: Callable[[], object]  # ends it; another thread calls this when it is too late, and perhaps again
    until: float = inf  # by the monotonic clock; infinite for what may take as long as it likes


class IdleTimeouts:
    """Aborts waits that last too long: `limit_s` may pass between two messages of a call."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._waits: set[Wait] = set()
        threading.Thread(target=self._watch, name="idle-timeouts", daemon=True).start()

    def add(self, wait: Wait) -> None:
        """Watches a wait until it is removed."""
        with self._lock:
            self._waits.add(wait)

    def remove(self, wait: Wait) -> None:
        """Forgets a wait."""
        with self._lock:
            self._waits.discard(wait)

    def deadline(self, times: int = 1) -> float:
        """Returns until when a wait that begins now may last, by the monotonic clock."""
        return time.monotonic() + times * self.limit_s

    def _watch(self) -> None:
        while True:
            time.sleep(self.limit_s / 4)
            now = time.monotonic()
            with self._lock:
                late = [wait for wait in self._waits if wait.until < now]
            for wait in late:
                try:
                    wait.abort()
                except Exception:  # the other waits are watched all the same
                    log.exception("an idle call cannot be ended")
            late.clear()
