"""Lets as many large transfers go at once as can finish; the others wait, so that they are not all too late together.

Transfers share what the network and the processors move in a second. Of twelve that could be done one after the other
before their deadlines, none is, if all go at once and that is not enough for all.

    claim ---- covered by what its stream has announced ----------------------> goes on
      |
      v
    WAITING   callers take turns ---- gone, or its deadline cannot be met ----> DeadlineExceededError
      | alone, or all that go can finish with it
      v
    GOING     counts while it is computed, or moves as quickly as a caller on a fair network ---- ended()

A caller that is slower counts no more, and so keeps nobody waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convserve.errors import DeadlineExceededError
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.fair_queue import FairQueue

_POLL_S = 0.05  # how often those that wait look whether it is their turn
_GRACE_S = 0.5  # that may pass without a byte
_FAIR_RATE = 20e6  # bytes a second
_FIRST_RATE = 100e6  # that all transfers are taken to have together before it is known
_KNOWN_BYTES = 2**28  # that have to be moved for it to be known
_WINDOW_S = 1.5  # over which it is measured
_SHARE = 0.5  # of the time until a deadline that a transfer is to take by the estimate
_CERTAIN = 0.5  # of an estimated time: what it takes at least


class Transfer:
    """What one stream moves."""

    def __init__(self, transfers: Transfers, caller: Caller, expected_bytes: int = 0) -> None:
        """Begins with nothing claimed; `expected_bytes` are claimed together, with the first of them."""
        self.caller = caller
        self.left = 0.0  # bytes that were claimed, and not moved
        self.is_ended = False
        self._counts_until, self._computing = 0.0, 0
        self._transfers = transfers
        self._unclaimed = expected_bytes if expected_bytes > transfers.large_bytes else 0

    def claim(self, size: int) -> None:
        """Waits until so many bytes may be moved; raises DeadlineExceededError if that cannot be in time."""
        if size <= self._transfers.large_bytes and not self._unclaimed:
            return
        if size > self._unclaimed or not self.left:
            together = max(size, self._unclaimed)
            self._transfers.wait(self, together)
            self._unclaimed = together
        self._unclaimed -= size

    def moved(self, size: int) -> None:
        """Notes that so many bytes have come or gone."""
        if self.left:
            with self._transfers.changed:
                now = self._transfers.look(size)
                self.left = max(0.0, self.left - size)
                self._counts_until = min(max(self._counts_until, now) + size / _FAIR_RATE, now + _GRACE_S)

    @contextmanager
    def computed(self) -> Iterator[None]:
        """Counts during the block, in which its caller has nothing to do."""
        counts = self.left > 0  # as all that was claimed does
        self._compute(counts)
        try:
            yield
        finally:
            self._compute(-counts)

    def _compute(self, change: int) -> None:
        if change:
            with self._transfers.changed:
                self._counts_until = max(self._counts_until, self._transfers.look() + _GRACE_S)
                self._computing += change

    def go(self, size: int, now: float) -> None:
        """Begins to move so many bytes."""
        self.left, self._counts_until = float(size), now + _GRACE_S

    def counts(self, now: float) -> bool:
        """Returns whether it takes its share of the network and the processors."""
        return self._computing > 0 or now < self._counts_until

    def ended(self) -> None:
        """Lets the next one go."""
        with self._transfers.changed:
            self._transfers.look()
            self._transfers.going.discard(self)
            self.is_ended = True
            self._transfers.changed.notify_all()


class Transfers:
    """Those of all streams."""

    def __init__(self, large_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with none; those of up to `large_bytes` never wait."""
        self.large_bytes, self._clock = large_bytes, clock
        self.changed = threading.Condition()
        self.going: set[Transfer] = set()
        self._queue: FairQueue[tuple[Transfer, int]] = FairQueue()
        # What was moved while any counted, and how long that took; and what was moved ever.
        self._bytes, self._seconds, self._known_bytes = _FIRST_RATE, 1.0, 0
        self._looked = clock()

    def wait(self, transfer: Transfer, size: int) -> None:
        """Waits until a transfer may go on with so many bytes more."""
        entry, name = (transfer, size), transfer.caller.name
        with self.changed:
            self._refuse_late(transfer, size, queued=False)
            self.going.discard(transfer)
            self._queue.append(name, entry)
            try:
                while transfer not in self.going:
                    if transfer.is_ended or not transfer.caller.is_active():
                        raise DeadlineExceededError("Expected a caller that waits. It is gone: nothing was moved.")
                    self._let_go()
                    if transfer not in self.going:
                        self._refuse_late(transfer, size, queued=True)
                        self.changed.wait(_POLL_S)
            finally:
                self._queue.discard(name, entry)

    def look(self, moved: int = 0) -> float:
        """Returns the time, with the lock held, after it has added what was moved, and the time since the last look."""
        now = self._clock()
        if any(each.counts(self._looked) for each in self.going):
            self._seconds += now - self._looked
            if self._seconds > _WINDOW_S:
                self._seconds, self._bytes = self._seconds / 2, self._bytes / 2
        self._looked = now
        self._bytes += moved
        self._known_bytes += moved
        return now

    def _let_go(self) -> None:
        """Lets those go whose turn it is."""
        now = self.look()
        while (entry := self._queue.first()) is not None:
            transfer, size = entry
            if not transfer.is_ended and not self._fits(transfer, size, now):
                return
            self._queue.pop()
            if transfer.is_ended:
                continue  # its own thread, which has not looked yet, would take it for one that goes
            transfer.go(size, now)
            self.going.add(transfer)

    def _fits(self, transfer: Transfer, size: int, now: float) -> bool:
        """Returns whether a transfer can go, so that all that go finish in time."""
        others = [each for each in self.going if each.counts(now)]
        if not others:
            return True
        total, number, rate = sum(each.left for each in others) + size, len(others) + 1, self._rate()

        def seconds(left: float) -> float:  # each has the same share of the rate until the smaller ones are done
            return min(total, left * number) / rate / _SHARE

        if seconds(size) > transfer.caller.remaining_s():
            return False
        # One that would be late alone, too, is none for whose sake others wait.
        left = ((each.left, each.caller.remaining_s()) for each in others)
        return not any(bytes_left / rate < until < seconds(bytes_left) for bytes_left, until in left)

    def _refuse_late(self, transfer: Transfer, size: int, *, queued: bool) -> None:
        """Refuses a transfer that cannot be done before its deadline."""
        if self._known_bytes < _KNOWN_BYTES or not (self.going or self._queue):
            return
        seconds, least_s = transfer.caller.remaining_s(), _CERTAIN * size / self._rate()
        if not queued:
            now = self._clock()
            before = sum(each.left for each in self.going if each.counts(now))
            before += sum(first for _, first in self._queue.firsts())
            # Others may leave, and more of them together be quicker.
            least_s += _CERTAIN * _CERTAIN * before / self._rate()
        if least_s > seconds:
            text = (
                f"Expected a deadline that can be met. Received {seconds:.2g} seconds for {size} bytes, while large "
                f"tensors of others are on their way: that takes {least_s:.2g} at least. Raise the timeout, or retry "
                "later."
            )
            raise DeadlineExceededError(text)

    def _rate(self) -> float:
        return max(self._bytes / self._seconds, _FAIR_RATE)
