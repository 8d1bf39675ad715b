"""How much of a run is done, and how fast it goes."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

MAX_FAILURES = 1000
"""The most failures whose reasons are kept in memory; the journal has all."""
_RECENT_S = 30.0


@dataclass(frozen=True)
class Counts:
    """How much is done at a moment.

    Attributes:
        items: How many there are, as far as is known: an archive counts as one until it is opened.
        done: How many of them this run has finished.
        skipped: How many were finished before.
        failed: How many failed, those included that failed before and are not tried again.
        samples: How many samples this run has computed.
        parts: What of unfinished items is done, as fractions of them added up.
        input_bytes: Bytes of the tensors that were sent.
        output_bytes: Bytes of the tensors that came back.
    """

    items: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    samples: int = 0
    parts: float = 0.0
    input_bytes: int = 0
    output_bytes: int = 0

    @property
    def left(self) -> int:
        """How many are neither done nor failed."""
        return self.items - self.done - self.skipped - self.failed


class Tally:
    """Counts. Any thread may call its methods.

    Attributes:
        failures: Keys and reasons, at most `MAX_FAILURES`.
    """

    def __init__(self, items: int) -> None:
        """Begins with so many items, of which nothing is done."""
        self._lock = threading.Lock()
        self._counts = Counts(items)
        self._started = time.monotonic()
        self.failures: list[tuple[str, str]] = []

    @property
    def counts(self) -> Counts:
        """What is done now."""
        with self._lock:
            return self._counts

    @property
    def seconds(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._started

    def add(self, **amounts: float) -> None:
        """Adds to some of the counts."""
        with self._lock:
            self._counts = replace(
                self._counts, **{name: getattr(self._counts, name) + amount for name, amount in amounts.items()}
            )

    def add_failure(self, key: str, reason: str) -> None:
        """Counts an item that failed."""
        with self._lock:
            self._counts = replace(self._counts, failed=self._counts.failed + 1)
            if len(self.failures) < MAX_FAILURES:
                self.failures.append((key, reason))


class Pace:
    """How fast a run goes at the moment: in the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Counts]] = deque()

    def see(self, now: float, counts: Counts) -> tuple[float | None, float | None]:
        """Notes the counts at a moment.

        Returns:
            Bytes per second, in and out together, and the seconds that are left; None where that is not known yet.
        """
        self._seen.append((now, counts))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RECENT_S:
            self._seen.popleft()
        then, before = self._seen[0]
        if now <= then:
            return None, None
        moved = counts.input_bytes + counts.output_bytes - before.input_bytes - before.output_bytes
        worked = _worked(counts) - _worked(before)
        left = max(0.0, counts.left - counts.parts)
        return moved / (now - then), left * (now - then) / worked if worked > 0 else None


def _worked(counts: Counts) -> float:
    return counts.done + counts.failed + counts.parts
