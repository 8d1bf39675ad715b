"""Admits calls: bounds how many are in the server and what memory they take, and shares both between callers.

    call ---- no free slot, or its deadline cannot be met ----> refused: OverloadedError, DeadlineExceededError
      |
      v
    QUEUED    until its bytes fit; callers take turns ---- caller gone, or deadline passed ----> DeadlineExceededError
      | granted
      v
    ADMITTED  has its bytes: its input is received, it waits for a device <--+
      | started()                                                            |
      v                                                                      |
    RUNNING ---- computed(share=0): it failed, and may be tried again -------+
      | computed()
      v
    COMPUTED  or nothing more is to be computed: its slot is free, its answer is on the way
      | release() by whoever computes it, and by the caller once it has the answer or is gone
      v
    RELEASED  its bytes are free; a call can be released in any state

A caller may have as many calls in the server as there are free slots, so that however much it sends, half of the free
slots stay for others. Likewise its calls, but for a single one, have at most as many bytes as they leave, so that
answers which it does not fetch keep nobody out; further ones of its calls wait. Small calls have some bytes to
themselves, so that they wait for no large ones. Where calls wait for bytes, those of slow callers are ended
(memory/slow_callers.py). A call without a free slot makes the server overloaded for a second. Meanwhile it takes only
what it computes soon: a late answer helps nobody, and a long queue makes every answer late. It stays so while what it
refuses in a second would not have found slots.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from convserve.errors import DeadlineExceededError, OverloadedError
from convserve.layers.plan import Plan
from convserve_server.memory import slow_callers
from convserve_server.memory.shares import RESERVE, SMALL, Shares
from convserve_server.memory.slow_callers import ANSWER, PIECES, Pace, SlowCallers
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.estimates import Estimates
from convserve_server.scheduling.fair_queue import FairQueue

# States of a permit, in order: it has a slot up to RUNNING, and bytes from ADMITTED to COMPUTED.
QUEUED, ADMITTED, RUNNING, COMPUTED, RELEASED = range(5)

_OVERLOADED_S = 1.0
# Computations that may be before a call while the server is overloaded: a number between two steps, as estimates vary.
_FEW_COMPUTATIONS = 1.25
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
_LOOK_S = 1.0  # between two looks of a call that waits for bytes at callers that are slow
_CERTAIN = 0.5  # of an estimated time: what it takes at least
_WORK_PER_BYTE = 2048  # of a small call at most: more is as much as a call of so many more bytes


@dataclass(frozen=True)
class Load:
    """What is in the server at a moment: bytes by the plans of calls, and calls that wait and that are computed."""

    admitted_bytes: int
    max_admitted_bytes: int
    waiting_calls: int
    running_calls: int


@dataclass(eq=False, slots=True)
class Permit:
    """One admitted call: the slot and the bytes that it takes. As a context it is released at the end."""

    _queue: AdmissionQueue
    caller: Caller
    plan: Plan
    size: int  # bytes that it takes, without the weights of layers
    work: int  # see `tiling.work`
    is_dense: Callable[[], bool]  # the same
    estimate_s: float  # its share of a computation
    pool: Shares | None = None  # which its bytes are of, once it has them
    waited_s: float = 0.0  # for its bytes
    state: int = QUEUED
    refcount: int = 1  # how many releases it takes to free the bytes
    granted: threading.Event | None = None  # wakes its thread while that waits for bytes; None if they fitted at once

    @property
    def burden(self) -> int:
        """Bytes that it takes, or as many as calls of so much work have."""
        return max(self.size, self.work // _WORK_PER_BYTE)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finishes it."""
        self.finish()

    def started(self) -> None:
        """Notes that its computation has started."""
        with self._queue.lock:
            self._queue.move(self, RUNNING)

    def computed(self, seconds: float, share: float, warm: bool) -> None:
        """Notes that its computation, which took so many seconds, has ended.

        The call's share of what was computed together is 0 if it failed, and may be tried again. It was warm if nothing
        was prepared that a call alike need not prepare again.
        """
        with self._queue.lock:
            self._queue.move(self, COMPUTED if share else ADMITTED)
            if share and warm:
                self._queue.estimates.note(self.plan, seconds * share, seconds, self.is_dense)

    def finish(self) -> None:
        """Notes that nothing is to be computed of it any more, and drops one reference."""
        with self._queue.lock:
            self._queue.move(self, COMPUTED)
        self.release()

    def awaits_pieces(self, end: Callable[[], object]) -> None:
        """Notes that its caller sends or fetches pieces from now on; `end` ends a stream for which that takes long."""
        with self._queue.lock:
            self._queue.expect(self, PIECES, end)

    def received(self) -> None:
        """Notes that its input is here."""
        with self._queue.lock:
            self._queue.slow.forget(self)

    def release(self) -> None:
        """Drops one reference; the last one frees its slot and its bytes."""
        with self._queue.lock:
            self.refcount -= 1
            if not self.refcount:
                self._queue.remove(self)
            elif self.state == COMPUTED and self.caller.cancel is not None:  # it is its caller's alone
                self._queue.expect(self, ANSWER, self.caller.cancel)


class AdmissionQueue:
    """Gives permits. Any thread may call `load` and `enter`; the rest is for permits, which hold its lock."""

    def __init__(
        self,
        max_admitted_bytes: int,
        max_waiting_calls: int,
        concurrent: tuple[int, int],
        large_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        flops_per_s: float = math.inf,
    ) -> None:
        """Starts empty, for devices that have `concurrent` computations at once, of small calls and of large ones.

        Large are those of a burden above `large_bytes`: they wait in a queue of their own, and small ones not for them.
        `flops_per_s` is what a device was measured at, if it was.
        """
        self._bytes, self._reserve = Shares(max_admitted_bytes), Shares(max_admitted_bytes // RESERVE)
        self._slots, self._running = Shares(max_waiting_calls + max(concurrent)), 0
        self._concurrent, self._large_bytes, self._clock = concurrent, large_bytes, clock
        self.lock, self.slow = threading.Lock(), SlowCallers(clock)
        self._queue: FairQueue[Permit] = FairQueue()  # of those that wait for bytes
        self._small_queue: FairQueue[Permit] = FairQueue()  # the same of small calls, which have the reserve
        self._ahead_s: dict[str, list[float]] = {}  # by caller: of its calls that have a slot, small and large ones
        self._overloaded_until = 0.0
        self._refusals: deque[float] = deque(maxlen=self._slots.total)  # when, of the last second
        self.estimates = Estimates(flops_per_s)

    def load(self) -> Load:
        """Returns what is in the server now."""
        with self.lock:
            used, waiting = self._bytes.used + self._reserve.used, self._slots.used - self._running
            return Load(used, self._bytes.total, waiting, self._running)

    def enter(self, caller: Caller, plan: Plan, work: int = 0, is_dense: Callable[[], bool] = lambda: True) -> Permit:
        """Returns a permit for a call that would fit an empty server, once there is memory for it.

        Raises OverloadedError if too many calls are in the server, or DeadlineExceededError if the caller's deadline
        can't be met or it went away while the call was queued.
        """
        with self.lock:
            share_s, computation_s = self.estimates.of(plan)
            size = plan.memory_bytes - plan.weight_bytes
            permit = Permit(self, caller, plan, size, work, is_dense, share_s)
            is_large = permit.burden > self._large_bytes
            ahead_s = self._ahead_s.get(caller.name) or [0.0, 0.0]
            self._check_slots(caller, is_large, computation_s)
            self._check_deadline(caller, ahead_s[is_large] / self._concurrent[is_large], plan.flops)
            self._slots.take(caller.name)
            self._ahead_s[caller.name] = ahead_s
            ahead_s[is_large] += share_s
            self._queue_of(permit).append(caller.name, permit)
            self._admit_next()
            if permit.state == QUEUED:
                permit.granted = threading.Event()
        try:
            if permit.granted is not None:
                self._wait(caller, permit, permit.granted)
            permit.refcount = 2  # one for whoever computes, one for the caller
            if not caller.add_done_callback(permit.release):
                permit.refcount = 1
        except BaseException:
            permit.refcount = 1
            permit.release()
            raise
        return permit

    def expect(self, permit: Permit, pace: Pace, end: Callable[[], object]) -> None:
        """Notes that a permit with bytes waits for its caller; `end` ends a call for which that takes long."""
        if permit.state != RELEASED and permit.pool is not None:
            seconds = pace.time_for(permit.size)
            self.slow.expect(permit, permit.caller.name, permit.size, permit.pool, seconds, end)

    def remove(self, permit: Permit) -> None:
        """Frees all that a permit takes, and admits those that it kept waiting."""
        self.slow.forget(permit)
        if permit.pool is None:
            self._queue_of(permit).discard(permit.caller.name, permit)
        else:
            permit.pool.give_back(permit.caller.name, permit.size)
        self.move(permit, RELEASED)
        self._admit_next()

    def move(self, permit: Permit, state: int) -> None:
        """Moves a permit to a state, and frees its slot if it needs none any more."""
        before = permit.state
        if before == RELEASED:
            return
        permit.state = state
        self._running += (state == RUNNING) - (before == RUNNING)
        if before <= RUNNING < state:
            name = permit.caller.name
            self._slots.give_back(name)
            self._ahead_s[name][permit.burden > self._large_bytes] -= permit.estimate_s
            if not self._slots.own[name]:
                del self._ahead_s[name]

    def _wait(self, caller: Caller, permit: Permit, granted: threading.Event) -> None:
        """Waits for a permit's bytes."""
        queued = self._clock()
        if caller.add_done_callback(granted.set) or caller.is_active():
            end = time.monotonic() + caller.remaining_s()
            while not granted.wait(min(max(0.0, end - time.monotonic()), _LOOK_S)) and time.monotonic() < end:
                with self.lock:
                    pools = next((pools for each, pools in self._turns() if each is permit), [])
                    late = self.slow.late_for(pools, permit.size, lambda pool: _fits(permit, pool))
                slow_callers.end(late)
        permit.waited_s = self._clock() - queued
        if permit.state == QUEUED or not caller.is_active():
            text = (
                f"Expected {permit.size} bytes of memory, out of the {self._bytes.total} of the server's "
                "--max-admitted-bytes, before the deadline. Received none: other calls had them, or yours before it, "
                "up to what is left for others. Raise the timeout, or send less at once."
            )
            raise DeadlineExceededError(text)

    def _is_small(self, permit: Permit) -> bool:
        return permit.size * SMALL <= self._bytes.total

    def _queue_of(self, permit: Permit) -> FairQueue[Permit]:
        return self._small_queue if self._is_small(permit) else self._queue

    def _pools(self, permit: Permit) -> list[Shares]:
        """Returns what a call may have bytes of: small ones also of those that are reserved for such."""
        return [self._bytes, self._reserve] if self._is_small(permit) else [self._bytes]

    def _admit_next(self) -> None:
        """Admits those whose turn it is as long as they fit."""
        while (following := self._following()) is not None:
            permit, pool = following
            self._admit(self._queue_of(permit).take(permit.caller.name), pool)

    def _following(self) -> tuple[Permit, Shares] | None:
        """Returns who is to be admitted next, and to which bytes."""
        return next(((each, pool) for each, pools in self._turns() for pool in pools if _fits(each, pool)), None)

    def _turns(self) -> Iterator[tuple[Permit, list[Shares]]]:
        """Yields each caller's next call, large ones first, with bytes that nobody before it wants.

        A call that would have more than its caller's share of some lets others pass there.
        """
        wanted: list[Shares] = []
        for queue in (self._queue, self._small_queue):
            for each in queue.firsts():
                pools = [pool for pool in self._pools(each) if pool not in wanted]
                if not pools:
                    break
                yield each, pools
                wanted += [pool for pool in pools if not _exceeds(each, pool)]

    def _admit(self, permit: Permit, pool: Shares) -> None:
        pool.take(permit.caller.name, permit.size)
        permit.pool = pool
        self.move(permit, ADMITTED)
        if permit.granted is not None:
            permit.granted.set()

    def _check_slots(self, caller: Caller, is_large: bool, computation_s: float) -> None:
        """Refuses a call that gets no slot, or no soon answer of an overloaded server."""
        now, slots = self._clock(), self._slots
        refused = not slots.fits(caller.name if caller.is_identified else "")
        if not refused and now >= self._overloaded_until:
            return
        own_calls, lanes = slots.own[caller.name], zip(self._concurrent, *self._ahead_s.values(), strict=True)
        waits_s = [sum(ahead_s) / concurrent for concurrent, *ahead_s in lanes]
        wait_s = waits_s[is_large]
        # A caller that has one call there at most is not refused for what others have there.
        if not refused and (own_calls <= 1 or wait_s < _FEW_COMPUTATIONS * computation_s):
            return
        self._refusals.append(now)
        while self._refusals[0] <= now - _OVERLOADED_S:
            self._refusals.popleft()
        if refused or slots.used + len(self._refusals) > slots.total:
            self._overloaded_until = now + _OVERLOADED_S
        retry_s = min(max(max(waits_s) if refused else wait_s, _MIN_RETRY_S), _MAX_RETRY_S)
        text = (
            f"Expected a server with room for one more call. Received the call while {slots.used} are in it, "
            f"{own_calls} of them yours, out of the {slots.total} that --max-waiting-calls allows for all: retry in "
            f"{retry_s:.2g} seconds, or send fewer at once."
        )
        raise OverloadedError(text, retry_after_s=retry_s)

    def _check_deadline(self, caller: Caller, ahead_s: float, flops: int) -> None:
        """Refuses a call that its caller's own calls make late, or that no device computes in time.

        Others' calls do not count: callers take turns, so that at most one of each other caller comes before it.
        """
        remaining_s = caller.remaining_s()
        own_s, min_s = _CERTAIN * ahead_s, self.estimates.min_s(flops)
        if remaining_s < own_s:
            why = f"your calls that come before this one take {own_s:.2g} at least: raise the timeout, or retry later"
        elif remaining_s < min_s:
            why = (
                f"the {flops} FLOPs of this call take {min_s:.2g} at least on a device that was measured at "
                f"{self.estimates.flops_per_s:.2g} a second: raise the timeout, or send less in one call"
            )
        else:
            return
        text = f"Expected a deadline that can be met. Received {remaining_s:.2g} seconds, and {why}."
        raise DeadlineExceededError(text)


def _sharer(permit: Permit, pool: Shares) -> str:
    """Returns who has to leave a share of a pool to others: nobody for a single call, or if callers look alike."""
    caller = permit.caller
    return pool.sharer(caller.name) if caller.is_identified else ""


def _fits(permit: Permit, pool: Shares) -> bool:
    return pool.fits(_sharer(permit, pool), permit.size)


def _exceeds(permit: Permit, pool: Shares) -> bool:
    return pool.exceeds(_sharer(permit, pool), permit.size)
