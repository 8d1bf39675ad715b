"""Who may be in the server, in calls and in bytes: a call that does not fit now waits in a line, or is sent away.

    a call -> too many wait, or its deadline cannot be met? --yes--> sent away at once, told when to come again
                                  |
                                  no
                                  v
              do its bytes fit? --no--> waits, callers taking turns, until they do or it is gone
                                  |
                                 yes
                                  v
              has a Permit: received, computed, answered, and its bytes are free again

Callers share the places: one may have as many calls in the server as there are places left, so that however much it
sends, half of what is left is always for others. When somebody is sent away the server is overloaded, and stays so
until nobody was for a second. Meanwhile it takes only what is computed soon: an answer that comes late helps nobody,
and what comes in beyond what can be done would only make everybody wait for as long as the line is.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from convserve.errors import DeadlineExceededError, OverloadedError
from convserve.layers.plan import Plan
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.fair_queue import FairQueue

_OVERLOADED_S = 1.0
# Computations that may be before a call while the server is overloaded: those under way, and one that waits, of two at
# once. It is between two steps, as estimates are never exact.
_FEW_COMPUTATIONS = 1.25
_SHORTEST_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
_MAX_ESTIMATES = 1000
_SMOOTHING = 0.2  # of an estimate: the share of the newest figure
_CERTAIN = 0.5  # of an estimated time: what it takes at least, for all we know


@dataclass(frozen=True)
class Load:
    """What is in the server at a moment.

    Attributes:
        admitted_bytes: Memory of the calls under way, by their plans.
        max_admitted_bytes: The most there may be.
        waiting_calls: Calls that are not computed yet.
        running_calls: Calls that are computed.
    """

    admitted_bytes: int
    max_admitted_bytes: int
    waiting_calls: int
    running_calls: int


class Permit:
    """A call's leave to be in the server, and the bytes that it may take: free again when everybody has let go of it.

    As a context it is held by whoever computes; the caller holds it too, until it has its answer or is gone.
    """

    __slots__ = (
        "_room",
        "_waited_s",
        "arrived",
        "began_ns",
        "caller",
        "estimate_s",
        "has_bytes",
        "holders",
        "is_in_line",
        "plan",
        "size",
        "turn",
    )

    def __init__(self, room: AdmissionQueue, caller: str, plan: Plan, estimate_s: float) -> None:
        self.plan = plan
        self.caller = caller
        self.size = plan.memory_bytes - plan.weight_bytes
        self.estimate_s = estimate_s
        self.began_ns = time.time_ns()
        self.arrived = time.monotonic()  # later: so long before its computation that it has waited since
        self._waited_s = 0.0
        self.turn: threading.Lock | None = None  # held while it waits for its bytes
        self.has_bytes = False
        self.is_in_line = True
        self.holders = 1
        self._room = room

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of it."""
        self.release()

    def release(self) -> None:
        """Takes one holder away."""
        self._room.release(self)

    def admitted(self) -> None:
        """Notes that it has its bytes, and may be sent."""
        self._waited_s = time.monotonic() - self.arrived

    def received(self) -> None:
        """Notes that all of its input is there: the time on its way is none that it waited."""
        self.began_ns = time.time_ns()
        self.arrived = time.monotonic() - self._waited_s

    def started(self) -> None:
        """Notes that it is being computed."""
        self._room.started()

    def computed(self, seconds: float, share: float, warm: bool) -> None:
        """Notes that it has been computed, or could not be, and may be tried again.

        Args:
            seconds: What the computation took.
            share: This call's part of what was computed together; 0 if it failed.
            warm: Whether nothing was prepared that a call alike need not prepare again.
        """
        self._room.computed(self, seconds, share, warm)


class AdmissionQueue:
    """Gives permits. Its methods may be called from any thread."""

    def __init__(
        self, max_admitted_bytes: int, max_waiting_calls: int, devices: int, concurrent: int, large_bytes: int
    ) -> None:
        """Opens empty.

        Args:
            max_admitted_bytes: The most bytes that all permits come to.
            max_waiting_calls: The most calls that are in the server without being computed.
            devices: How many compute.
            concurrent: How many computations each has at once.
            large_bytes: Calls above this have turns of their own: they and smaller ones don't wait for each other.
        """
        self._bytes = max_admitted_bytes
        self._at_once, self._large_bytes = devices * concurrent, large_bytes
        self._places = max_waiting_calls + devices * concurrent
        self._lock = threading.Lock()
        self._taken_bytes = 0
        self._line: FairQueue[Permit] = FairQueue()  # of those that wait for bytes
        self._calls: Counter[str] = Counter()  # by caller: those that are not computed yet, or are right now
        self._in_line = self._running = 0
        # What they take, by estimate: of each caller's large ones, and of its others.
        self._ahead_s: dict[tuple[str, bool], float] = {}
        self._overloaded_until = 0.0
        # Of calls alike: seconds of a call's own share, and of a whole computation.
        self._estimates: OrderedDict[tuple[int, int], tuple[float, float]] = OrderedDict()

    def load(self) -> Load:
        """Returns what is in the server now."""
        with self._lock:
            return Load(self._taken_bytes, self._bytes, self._in_line - self._running, self._running)

    def enter(self, caller: Caller, plan: Plan) -> Permit:
        """Returns a permit for a call that would fit an empty server, once there is room for it.

        Raises:
            OverloadedError: If too many calls are in the server.
            DeadlineExceededError: If the caller's deadline can't be met, or it left while it waited.
        """
        with self._lock:
            share_s, computation_s = self._estimates.get(_alike(plan), (0.0, 0.0))
            permit = Permit(self, caller.name, plan, share_s)
            self._check_line(caller, computation_s)
            self._check_deadline(caller, permit)
            self._calls[caller.name] += 1
            self._in_line += 1
            lane = self._lane(permit)
            self._ahead_s[lane] = self._ahead_s.get(lane, 0.0) + share_s
            if len(self._line) or self._taken_bytes + permit.size > self._bytes:
                permit.turn = threading.Lock()
                permit.turn.acquire()
                self._line.append(caller.name, permit)
            else:
                self._give_bytes(permit)
        if permit.turn is not None:
            self._wait(caller, permit, permit.turn)
        permit.admitted()
        with self._lock:
            permit.holders += 1
        if not caller.add_done_callback(permit.release):
            permit.release()
        return permit

    def _wait(self, caller: Caller, permit: Permit, turn: threading.Lock) -> None:
        """Waits for a permit's bytes."""
        if caller.add_done_callback(lambda: self._leave(permit)) or caller.is_active():
            remaining_s = caller.remaining_s()
            turn.acquire(timeout=-1 if remaining_s is None else min(max(0.0, remaining_s), threading.TIMEOUT_MAX))
        self._leave(permit)
        if not permit.has_bytes or not caller.is_active():
            permit.release()
            text = (
                f"Expected {permit.size} bytes of memory, out of the {self._bytes} of the server's "
                "--max-admitted-bytes, before the deadline. Received none: other calls had them. Raise the timeout, or "
                "send less at once."
            )
            raise DeadlineExceededError(text)

    def _leave(self, permit: Permit) -> None:
        """Takes a permit out of the line, if it is there, and wakes who waits with it."""
        with self._lock:
            was_there = self._line.discard(permit.caller, permit)
            if was_there:
                self._admit_next()
        if was_there and permit.turn is not None:
            permit.turn.release()

    def release(self, permit: Permit) -> None:
        """Takes one of a permit's holders away, and with the last one its bytes."""
        with self._lock:
            permit.holders -= 1
            if permit.holders:
                return
            self._take_out_of_line(permit)
            if permit.has_bytes:
                permit.has_bytes = False
                self._taken_bytes -= permit.size
                self._admit_next()

    def started(self) -> None:
        """Notes that a call is computed now."""
        with self._lock:
            self._running += 1

    def computed(self, permit: Permit, seconds: float, share: float, warm: bool) -> None:
        """Notes that a call was computed; as `Permit.computed`."""
        with self._lock:
            self._running -= 1
            if share:
                self._take_out_of_line(permit)
            if share and warm:
                found = (seconds * share, seconds)
                key = _alike(permit.plan)
                before = self._estimates.pop(key, found)
                self._estimates[key] = (
                    before[0] + _SMOOTHING * (found[0] - before[0]),
                    before[1] + _SMOOTHING * (found[1] - before[1]),
                )
                if len(self._estimates) > _MAX_ESTIMATES:
                    self._estimates.popitem(last=False)

    def _admit_next(self) -> None:
        """Gives bytes to those whose turn it is, as far as they suffice."""
        while (permit := self._line.first()) is not None and self._taken_bytes + permit.size <= self._bytes:
            self._line.take_first()
            self._give_bytes(permit)
            assert permit.turn is not None  # noqa: S101 (it waits)
            permit.turn.release()

    def _give_bytes(self, permit: Permit) -> None:
        permit.has_bytes = True
        self._taken_bytes += permit.size

    def _lane(self, permit: Permit) -> tuple[str, bool]:
        return permit.caller, permit.size > self._large_bytes

    def _take_out_of_line(self, permit: Permit) -> None:
        if permit.is_in_line:
            permit.is_in_line = False
            self._in_line -= 1
            self._ahead_s[self._lane(permit)] -= permit.estimate_s
            self._calls[permit.caller] -= 1
            if not self._calls[permit.caller]:
                for is_large in (False, True):
                    self._ahead_s.pop((permit.caller, is_large), None)
                del self._calls[permit.caller]

    def _check_line(self, caller: Caller, computation_s: float) -> None:
        now, mine, left = time.monotonic(), self._calls[caller.name], self._places - self._in_line
        refused = mine >= left if caller.is_identified else not left
        if not refused and now >= self._overloaded_until:
            return
        wait_s = sum(self._ahead_s.values()) / self._at_once
        # Somebody who has nothing in the server is never sent away for what others have there.
        if not refused and (mine <= 1 or wait_s < _FEW_COMPUTATIONS * computation_s):
            return
        self._overloaded_until = now + _OVERLOADED_S
        retry_s = min(max(wait_s, _SHORTEST_RETRY_S), _MAX_RETRY_S)
        text = (
            f"Expected a server with room for one more call. Received the call while {self._in_line} are in it, {mine} "
            f"of them yours, out of the {self._places} that --max-waiting-calls allows for all: retry in {retry_s:.2g} "
            "seconds, or send fewer at once."
        )
        raise OverloadedError(text, retry_after_s=retry_s)

    def _check_deadline(self, caller: Caller, permit: Permit) -> None:
        """Refuses a call before which so many of its own caller come that its turn cannot come in time.

        Others' are not counted: they take turns with this caller, and so come before it once each at most.
        """
        remaining_s = caller.remaining_s()
        if remaining_s is None:
            return
        least_s = _CERTAIN * self._ahead_s.get(self._lane(permit), 0.0) / self._at_once
        if remaining_s < least_s:
            text = (
                f"Expected a deadline that can be met. Received {remaining_s:.2g} seconds, and your calls that come "
                f"before this one take {least_s:.2g} at least: raise the timeout, or retry later."
            )
            raise DeadlineExceededError(text)


def _alike(plan: Plan) -> tuple[int, int]:
    """Returns what calls have in common that take about as long: what they compute, and what they move."""
    return plan.flops, plan.memory_bytes
