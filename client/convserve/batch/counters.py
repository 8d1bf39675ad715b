"""How much of a run is done, and how fast it goes."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

MAX_FAILURES = 1000
"""The most failures whose reasons are kept in memory; the journal has all."""
_RECENT_S = 30.0
_YEAR_S = 365 * 86400.0


@dataclass(frozen=True)
class Counts:
    """How much is done at a moment."""

    items: int  # as far as is known: an archive counts as one until it is opened
    done: int = 0  # by this run
    skipped: int = 0  # done before
    failed: int = 0  # including those that failed before and are not tried again
    samples: int = 0  # that this run computed
    parts: float = 0.0  # fractions of unfinished items that are done, added up
    input_bytes: int = 0  # of the tensors that were sent
    output_bytes: int = 0
    file_bytes: int = 0  # of the outputs that this run finished, as they are stored

    @property
    def left(self) -> int:
        """How many are neither done nor failed."""
        return self.items - self.done - self.skipped - self.failed


class Tally:
    """Counts, of which any thread may call the methods."""

    def __init__(self, items: int) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.counts = Counts(items)
        self.failures: list[tuple[str, str]] = []  # keys and reasons, at most `MAX_FAILURES`

    @property
    def seconds(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._started

    def add(self, **amounts: float) -> None:
        """Adds to some of the counts."""
        with self._lock:
            sums = {name: getattr(self.counts, name) + amount for name, amount in amounts.items()}
            self.counts = replace(self.counts, **sums)

    def add_failure(self, key: str, reason: str) -> None:
        """Counts an item that failed."""
        self.add(failed=1)
        with self._lock:
            if len(self.failures) < MAX_FAILURES:
                self.failures.append((key, reason))


class Pace:
    """How fast a run went in the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, float]] = deque()

    def see(self, now: float, counts: Counts) -> tuple[float | None, float | None]:
        """Notes the counts at a moment; returns bytes per second in and out, and the seconds that are left, or None."""
        moved, worked = counts.input_bytes + counts.output_bytes, counts.done + counts.failed + counts.parts
        self._seen.append((now, moved, worked))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RECENT_S:
            self._seen.popleft()
        then, moved_before, worked_before = self._seen[0]
        if now <= then:
            return None, None
        seconds, progress = now - then, worked - worked_before
        left_s = max(0.0, counts.left - counts.parts) * seconds / progress if progress > 0 else math.inf
        # What rounding leaves when parts become an item is no progress.
        return (moved - moved_before) / seconds, left_s if left_s < _YEAR_S else None
