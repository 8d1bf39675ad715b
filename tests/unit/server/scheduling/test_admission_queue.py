"""The waiting room: bytes and places, shared fairly; who does not fit waits or is sent away, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve import Conv2D, OverloadedError, Plan
from convserve.errors import DeadlineExceededError
from convserve_server.scheduling.admission_queue import ADMITTED, AdmissionQueue, Permit
from convserve_server.scheduling.caller import Caller
from tests.support.waiting import eventually as until

CONFIG = Conv2D(1, 1, data_format="channels_last", dtype="float32", use_bias=False)


def plan(samples: int) -> Plan:
    """Returns a plan for 20 bytes a sample, beside weights."""
    found = CONFIG.plan((samples, 1, 1, 1))
    return replace(found, memory_bytes=20 * samples + found.weight_bytes)


def room(total: int = 100, places: int = 100, devices: int = 1) -> AdmissionQueue:
    return AdmissionQueue(total * 20, places, devices, 1, 100)


def compute(permit: Permit, seconds: float = 1.0, warm: bool = True) -> None:
    with permit:
        permit.started()
        permit.computed(seconds, 1, warm)


class Leaving:
    """A caller that leaves when the test says so."""

    def __init__(self, name: str = "", remaining_s: float | None = None) -> None:
        self.calls: list[Callable[[], None]] = []
        self.gone = False
        self.caller = Caller(name, True, lambda: not self.gone, lambda: remaining_s, self._when_gone)

    def _when_gone(self, call: Callable[[], None]) -> bool:
        if not self.gone:
            self.calls.append(call)
        return not self.gone

    def leave(self) -> None:
        self.gone = True
        for call in self.calls:
            call()


class Callers:
    """Threads that enter a room."""

    def __init__(self, entered: AdmissionQueue) -> None:
        self.room = entered
        self.pool = ThreadPoolExecutor(64)

    def enter(self, caller: Caller, samples: int) -> Future[Permit]:
        before = self.room.load().waiting_calls
        future = self.pool.submit(self.room.enter, caller, plan(samples))
        until(lambda: future.done() or self.room.load().waiting_calls > before)
        return future


def test_a_permit_holds_its_bytes_until_it_is_computed_and_its_caller_has_the_answer() -> None:
    entered, caller = room(), Leaving()
    permit = entered.enter(caller.caller, plan(3))
    assert entered.load().admitted_bytes == 60
    assert entered.load().waiting_calls == 1
    compute(permit)
    assert (entered.load().admitted_bytes, entered.load().waiting_calls) == (60, 0)
    caller.leave()
    assert entered.load().admitted_bytes == 0


def test_a_caller_that_leaves_early_frees_the_bytes_when_the_computation_has_ended() -> None:
    entered, caller = room(), Leaving()
    permit = entered.enter(caller.caller, plan(3))
    permit.started()
    caller.leave()
    assert (entered.load().admitted_bytes, entered.load().running_calls) == (60, 1)
    permit.computed(1, 0, False)
    permit.release()
    assert (entered.load().admitted_bytes, entered.load().running_calls, entered.load().waiting_calls) == (0, 0, 0)


def test_what_does_not_fit_waits_until_it_does_and_smaller_ones_do_not_overtake_it() -> None:
    callers = Callers(room(total=10))
    first = callers.room.enter(Caller("a"), plan(6))
    large, small = callers.enter(Caller("b"), 8), callers.enter(Caller("c"), 1)
    assert not large.done()
    assert not small.done()
    compute(first)
    assert large.result(30).state == ADMITTED
    assert small.result(30).state == ADMITTED
    assert callers.room.load().admitted_bytes == 180


def test_callers_take_turns_in_the_line_for_bytes() -> None:
    callers = Callers(room(total=1))
    before = callers.room.enter(Caller("x"), plan(1))
    waiting = {name: callers.enter(Caller(name[0]), 1) for name in ("a1", "a2", "a3", "b1")}
    order = []
    for _ in range(4):
        compute(before)
        until(lambda: any(each.done() for name, each in waiting.items() if name not in order))
        (name,) = (name for name, each in waiting.items() if each.done() and name not in order)
        order.append(name)
        before = waiting[name].result()
    assert order == ["a1", "b1", "a2", "a3"]


def test_who_leaves_the_line_lets_the_next_one_in_at_once() -> None:
    callers = Callers(room(total=10))
    callers.room.enter(Caller("a"), plan(6))
    leaving = Leaving("b")
    large, small = callers.enter(leaving.caller, 8), callers.enter(Caller("c"), 1)
    leaving.leave()
    assert small.result(30).state == ADMITTED
    with pytest.raises(DeadlineExceededError, match="--max-admitted-bytes"):
        large.result(30)
    assert callers.room.load().admitted_bytes == 140


def test_who_waits_for_bytes_does_so_as_long_as_its_deadline_allows() -> None:
    callers = Callers(room(total=1))
    callers.room.enter(Caller("a"), plan(1))
    with pytest.raises(DeadlineExceededError, match="Expected 20 bytes of memory, out of the 20"):
        callers.room.enter(Leaving("b", remaining_s=0.01).caller, plan(1))
    assert callers.room.load().waiting_calls == 1


def test_a_caller_may_have_half_of_the_places_that_are_left_and_others_still_come_in() -> None:
    entered = room(places=15)
    for name, expected in (("greedy", 8), ("second", 4), ("third", 2), ("fourth", 1)):
        for _ in range(expected):
            entered.enter(Caller(name), plan(1))
        if name == "greedy":
            with pytest.raises(OverloadedError, match="while 8 are in it, 8 of them yours, out of the 16"):
                entered.enter(Caller(name), plan(1))
            entered._overloaded_until = 0
    assert entered.load().waiting_calls == 15


def known(entered: AdmissionQueue, seconds: float) -> None:
    compute(entered.enter(Caller("x"), plan(1)), seconds)


def test_while_it_is_overloaded_only_what_is_computed_soon_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("convserve_server.scheduling.admission_queue.time.monotonic", lambda: clock[0])
    entered = room(places=9)
    known(entered, 0.1)
    permits = [entered.enter(Caller("a"), plan(1)) for _ in range(5)]
    with pytest.raises(OverloadedError) as refusal:
        entered.enter(Caller("a"), plan(1))
    assert refusal.value.retry_after_s == pytest.approx(0.5)
    for permit in permits[:2]:
        compute(permit, 0.1)
    clock[0] = 0.9
    with pytest.raises(OverloadedError):  # three are before it, though there are places
        entered.enter(Caller("a"), plan(1))
    entered.enter(Caller("polite"), plan(1))  # who has none there comes in all the same
    clock[0] = 1.8  # a second after the last one was sent away it would be over, and is not yet
    compute(permits[2], 0.1)
    with pytest.raises(OverloadedError):
        entered.enter(Caller("a"), plan(1))
    compute(permits[3], 0.1)
    compute(permits[4], 0.1)
    entered.enter(Caller("a"), plan(1))
    clock[0] = 2.9
    for _ in range(3):
        entered.enter(Caller("a"), plan(1))


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_others_are_not() -> None:
    entered = room()
    known(entered, 2.0)
    compute(entered.enter(Caller("x"), plan(6)), 2.0)
    hasty = Leaving("a", remaining_s=1.5).caller
    for _ in range(2):
        entered.enter(hasty, plan(1))
    with pytest.raises(DeadlineExceededError, match=r"Received 1\.5 seconds, and your calls .* take 2 at least"):
        entered.enter(hasty, plan(1))
    entered.enter(Leaving("a", remaining_s=2.5).caller, plan(1))
    entered.enter(Leaving("a", remaining_s=0.1).caller, plan(6))  # which has turns of its own
    entered.enter(Leaving("b", remaining_s=0.1).caller, plan(1))  # which takes turns with the others
    entered.enter(Caller("a"), plan(1))


def test_what_was_slow_because_it_was_the_first_is_no_measure() -> None:
    entered = room()
    compute(entered.enter(Caller("a"), plan(1)), 1000.0, warm=False)
    for _ in range(3):
        entered.enter(Leaving("a", remaining_s=0.1).caller, plan(1))


def test_callers_that_cannot_be_told_apart_may_have_all_places() -> None:
    entered = room(places=15)
    many = Caller("unix:", is_identified=False)
    for _ in range(16):
        entered.enter(many, plan(1))
    with pytest.raises(OverloadedError):
        entered.enter(many, plan(1))


def test_calls_that_are_computed_again_are_still_in_line() -> None:
    entered = room()
    permits = [entered.enter(Caller("a"), plan(1)) for _ in range(3)]
    for permit in permits:
        permit.started()
    for permit in permits:
        permit.computed(1.0, 0, False)
    assert (entered.load().waiting_calls, entered.load().running_calls) == (3, 0)
    for permit in permits:
        compute(permit)
    assert (entered.load().waiting_calls, entered.load().admitted_bytes) == (0, 0)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["add_done_callback", "is_active"])
@pytest.mark.parametrize("is_queued", [False, True])
def test_a_call_whose_caller_raises_takes_nothing(step: str, kind: type[BaseException], is_queued: bool) -> None:
    def fail(*_: Any) -> Any:
        raise kind(step)

    queue = room(total=1)
    before = queue.enter(Caller("a"), plan(1)) if is_queued else None
    if step == "add_done_callback" or is_queued:
        with pytest.raises(kind, match=step):
            queue.enter(Caller("b")._replace(**{step: fail}), plan(1))
    if before is not None:
        compute(before)
    load = queue.load()
    assert (load.admitted_bytes, load.waiting_calls, load.running_calls) == (0, 0, 0)
    compute(queue.enter(Caller("c"), plan(1)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from(["stay", "leave", "fail"]))))
def test_nothing_is_lost_whatever_happens(steps: list[tuple[str, int, str]]) -> None:
    callers, most = Callers(room(total=8, places=200)), [0]
    lock = threading.Lock()

    def call(name: str, samples: int, ends: str) -> Any:
        caller = Leaving(name)
        with callers.room.enter(caller.caller, plan(samples)) as permit:
            with lock:
                most[0] = max(most[0], callers.room.load().admitted_bytes)
            if ends == "leave":
                caller.leave()
            permit.started()
            permit.computed(0.0, 0 if ends == "fail" else 1, True)
        if ends != "leave":
            caller.leave()

    futures = [callers.pool.submit(call, *step) for step in steps]
    for future in futures:
        future.result(30)
    callers.pool.shutdown()
    load = callers.room.load()
    assert (load.admitted_bytes, load.waiting_calls, load.running_calls) == (0, 0, 0)
    assert most[0] <= 160
    assert not callers.room._callers
