"""The admission queue: it shares slots and bytes fairly, and frees all that a call takes, however the call ends."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve import Conv2D, OverloadedError, Plan
from convserve.errors import DeadlineExceededError
from convserve_server.memory.shares import Shares
from convserve_server.scheduling import admission_queue
from convserve_server.scheduling.admission_queue import ADMITTED, RUNNING, AdmissionQueue, Permit
from convserve_server.scheduling.caller import Caller
from tests.support.waiting import eventually

CONFIG = Conv2D(1, 1, data_format="channels_last", dtype="float32", use_bias=False)


def plan(samples: int) -> Plan:
    """Returns a plan for 20 bytes a sample, beside weights."""
    result = CONFIG.plan((samples, 1, 1, 1))
    return replace(result, memory_bytes=20 * samples + result.weight_bytes)


def queue_of(total: int = 100, slots: int = 100, clock: Callable[[], float] = time.monotonic) -> AdmissionQueue:
    return AdmissionQueue(total * 20, slots, (1, 1), 100, clock)


def compute(permit: Permit, seconds: float = 1.0, warm: bool = True) -> None:
    with permit:
        permit.started()
        permit.computed(seconds, 1, warm)


class Leaving:
    """A caller that leaves when the test says so."""

    def __init__(self, name: str = "", remaining_s: float = math.inf) -> None:
        self.calls: list[Callable[[], None]] = []
        self.gone = False
        self.caller = Caller(name, True, lambda: not self.gone, lambda: remaining_s, self._add_done_callback)

    def _add_done_callback(self, call: Callable[[], None]) -> bool:
        if not self.gone:
            self.calls.append(call)
        return not self.gone

    def leave(self) -> None:
        self.gone = True
        for call in self.calls:
            call()


class Callers:
    """Threads that enter a queue."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self.queue = queue
        self.pool = ThreadPoolExecutor(64)

    def enter(self, caller: Caller, samples: int) -> Future[Permit]:
        before = self.queue.load().waiting_calls
        future = self.pool.submit(self.queue.enter, caller, plan(samples))
        eventually(lambda: future.done() or self.queue.load().waiting_calls > before)
        return future


def test_a_permit_holds_its_bytes_until_it_is_computed_and_its_caller_has_the_answer() -> None:
    queue, caller = queue_of(), Leaving()
    permit = queue.enter(caller.caller, plan(3))
    assert queue.load().admitted_bytes == 60
    assert queue.load().waiting_calls == 1
    compute(permit)
    assert (queue.load().admitted_bytes, queue.load().waiting_calls) == (60, 0)
    caller.leave()
    assert queue.load().admitted_bytes == 0


def test_answers_that_a_caller_does_not_fetch_leave_half_to_others() -> None:
    callers = Callers(queue := queue_of())
    greedy = Leaving("greedy")
    for samples in (40, 10):  # 50 of 100 are left
        compute(queue.enter(greedy.caller, plan(samples)))
    waits = callers.enter(Leaving("greedy").caller, 10)
    assert not waits.done()
    for name in ("one", "another"):  # though the greedy one's waits
        compute(callers.enter(Leaving(name).caller, 20).result(10))
    greedy.leave()
    assert waits.result(10).state == ADMITTED


def test_an_answer_that_is_not_fetched_is_given_up_where_others_wait_for_its_bytes() -> None:
    now = [0.0]
    callers = Callers(queue := queue_of(clock=lambda: now[0]))
    slow, quick, streaming = Leaving("slow"), Leaving("quick"), Leaving("streaming")
    compute(queue.enter(slow.caller._replace(cancel=slow.leave), plan(40)))
    compute(queue.enter(streaming.caller, plan(40)))
    now[0] = 4.0
    compute(queue.enter(quick.caller._replace(cancel=quick.leave), plan(20)))
    now[0] = 6.0
    waits = callers.enter(Leaving("other").caller, 20)
    assert waits.result(30).state == ADMITTED
    assert (slow.gone, quick.gone, streaming.gone) == (True, False, False)


def test_pieces_that_come_too_slowly_are_given_up_where_others_wait_for_their_bytes() -> None:
    now = [0.0]
    callers = Callers(queue := queue_of(clock=lambda: now[0]))
    slow, done, quick = Leaving("slow"), Leaving("done"), Leaving("quick")
    permits = {each: queue.enter(each.caller, plan(30)) for each in (slow, done)}
    for each, permit in permits.items():
        permit.awaits_pieces(each.leave)
    permits[done].received()
    now[0] = 6.0
    queue.enter(quick.caller, plan(20)).awaits_pieces(quick.leave)
    now[0] = 12.0
    waits = callers.enter(Leaving("other").caller, 30)
    eventually(lambda: slow.gone)
    permits[slow].release()  # by the thread that received it
    assert waits.result(30).state == ADMITTED
    assert (done.gone, quick.gone) == (False, False)
    permits[slow].awaits_pieces(slow.leave)  # too late: it has no bytes that others could wait for
    assert permits[slow] not in queue.slow._waits


def test_nobody_is_ended_for_one_who_waits_for_more_than_its_share() -> None:
    now = [0.0]
    callers = Callers(queue := queue_of(clock=lambda: now[0]))
    slow, greedy = Leaving("slow"), [Leaving("greedy") for _ in range(2)]
    permit = queue.enter(slow.caller, plan(30))
    permit.awaits_pieces(slow.leave)
    held = queue.enter(greedy[0].caller, plan(40))
    now[0] = 20.0
    waits = callers.enter(greedy[1].caller, 10)  # 30 are free, of which it leaves half to others
    assert not queue.slow.late_for([queue._bytes], 10 * 20, lambda _: True)
    assert not waits.done()
    compute(held)
    held.release()
    assert waits.result(30).state == ADMITTED


def test_one_of_several_slow_callers_is_ended_for_a_call_that_needs_the_bytes_of_one() -> None:
    now = [0.0]
    callers = Callers(queue := queue_of(clock=lambda: now[0]))

    def end(caller: Leaving, permit: Permit) -> None:
        caller.leave()
        permit.release()

    slow = [Leaving(name) for name in "abcde"]
    for each in slow:
        permit = queue.enter(each.caller, plan(20))
        permit.awaits_pieces(functools.partial(end, each, permit))
    now[0] = 20.0
    assert callers.enter(Leaving("other").caller, 20).result(30).state == ADMITTED
    assert sum(each.gone for each in slow) == 1


def test_a_caller_that_left_while_its_call_is_computed_is_not_slow() -> None:
    queue, caller = queue_of(), Leaving("gone")
    permit = queue.enter(caller.caller._replace(cancel=caller.leave), plan(90))
    permit.started()
    caller.leave()
    assert not queue.slow._waits
    permit.computed(1.0, 1, warm=True)
    permit.finish()
    assert queue.load().admitted_bytes == 0


def test_a_single_call_may_have_all_bytes_and_callers_who_cannot_be_told_apart_share_nothing() -> None:
    queue = queue_of()
    one = Leaving("one")
    compute(queue.enter(one.caller, plan(100)))
    one.leave()
    unknown = Leaving().caller._replace(is_identified=False)
    for _ in range(4):
        compute(Callers(queue).enter(unknown, 25).result(10))
    assert queue.load().admitted_bytes == 2000


def test_a_caller_that_leaves_early_frees_the_bytes_when_the_computation_has_ended() -> None:
    queue, caller = queue_of(), Leaving()
    permit = queue.enter(caller.caller, plan(3))
    permit.started()
    caller.leave()
    assert (queue.load().admitted_bytes, queue.load().running_calls) == (60, 1)
    permit.computed(1, 0, False)
    permit.release()
    assert (queue.load().admitted_bytes, queue.load().running_calls, queue.load().waiting_calls) == (0, 0, 0)


def test_a_call_waits_until_its_bytes_fit_and_smaller_calls_do_not_overtake_it() -> None:
    callers = Callers(queue_of(total=10))
    first = callers.queue.enter(Caller("a"), plan(6))
    large, small = callers.enter(Caller("b"), 8), callers.enter(Caller("c"), 1)
    assert not large.done()
    assert not small.done()
    compute(first)
    assert large.result(30).state == ADMITTED
    assert small.result(30).state == ADMITTED
    assert callers.queue.load().admitted_bytes == 180


def test_small_calls_wait_for_no_large_ones_until_their_own_bytes_are_taken() -> None:
    callers = Callers(queue := queue_of(total=2560))  # a small call has 10 samples at most, all of them 160
    first = queue.enter(Caller("a"), plan(2560))
    large = callers.enter(Caller("b"), 2000)
    small = [callers.enter(Leaving(f"small {number}").caller, 10).result(30) for number in range(16)]
    assert queue.load().admitted_bytes == 20 * 2720
    waiting = callers.enter(Caller("late"), 10)
    not_small = callers.enter(Caller("c"), 11)
    assert not any(each.done() for each in (waiting, not_small, large))
    compute(small[0])
    assert not waiting.done()  # it has an answer that was not fetched
    small[0].release()
    assert waiting.result(30).state == ADMITTED
    assert not large.done()
    compute(first)
    assert [each.result(30).state for each in (large, not_small)] == [ADMITTED] * 2


def test_a_small_call_waits_for_no_large_one_of_its_caller() -> None:
    callers = Callers(queue := queue_of(total=2560))
    running = queue.enter(Caller("other"), plan(2560))
    small = [callers.enter(Leaving("a").caller, 10).result(30) for _ in range(8)]  # half of those bytes
    large, waiting = (callers.enter(Leaving("a").caller, samples) for samples in (1000, 10))
    compute(small[0])
    assert not waiting.done()
    small[0].release()
    assert waiting.result(30).state == ADMITTED
    assert not large.done()
    compute(running)
    assert large.result(30).state == ADMITTED


def test_small_calls_have_the_bytes_that_a_large_one_may_not_take_before_its_caller_has_less() -> None:
    callers = Callers(queue := queue_of(total=2560))
    held = queue.enter(Leaving("large").caller, plan(1000))
    waits = callers.enter(Leaving("large").caller, 1000)
    assert not waits.done()
    for _ in range(16):  # of which the reserve has room for 8 of one caller
        assert callers.enter(Leaving("small").caller, 10).result(30).state == ADMITTED
    compute(held)
    held.release()
    assert waits.result(30).state == ADMITTED


def test_smaller_calls_do_not_pass_a_small_one_that_waits_for_its_turn() -> None:
    callers = Callers(queue := queue_of(total=2560))  # small ones have 10 samples at most, and 160 to themselves
    queue.enter(Leaving("large").caller, plan(2560))
    smaller = [Leaving(f"smaller {number}") for number in range(40)]
    permits = [queue.enter(each.caller, plan(4)) for each in smaller]
    first, second = (callers.enter(Leaving(name).caller, samples) for name, samples in (("first", 10), ("second", 4)))
    for number, (each, permit) in enumerate(zip(smaller[:4], permits, strict=False), 1):
        assert (first.done(), second.done()) == (number > 3, False)
        compute(permit)
        each.leave()
        if number == 3:
            assert first.result(30).state == ADMITTED
    assert second.result(30).state == ADMITTED


def test_a_small_call_that_exceeds_its_callers_share_keeps_no_other_from_bytes_that_are_free() -> None:
    callers = Callers(queue := queue_of(total=2560))
    large = queue.enter(Caller("large"), plan(2560 - 1290))
    for caller, samples in (("greedy", 1280), ("last", 10)):  # the greedy one has more than its share of all bytes
        queue.enter(Caller(caller), plan(samples))
    for number in range(16):
        queue.enter(Caller(f"small {number}"), plan(10))
    waits = callers.enter(Caller("greedy"), 10)
    compute(large)
    assert callers.enter(Caller("other"), 10).result(30).state == ADMITTED
    assert not waits.done()


def test_nobody_is_ended_for_a_call_whose_turn_has_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_queue, "_LOOK_S", 0.01)
    now = [0.0]
    callers = Callers(queue := queue_of(total=2560, clock=lambda: now[0]))
    slow = Leaving("slow")
    queue.enter(slow.caller, plan(500)).awaits_pieces(slow.leave)
    computing = queue.enter(Caller("computing"), plan(2060))
    first = callers.enter(Caller("first"), 2000)  # which would not fit without the slow one either
    looked, late_for = threading.Semaphore(0), queue.slow.late_for

    def noted(pools: list[Shares], *arguments: Any) -> list[Any]:
        late = late_for(pools, *arguments)
        looked.release()
        return late

    monkeypatch.setattr(queue.slow, "late_for", noted)
    now[0] = 100.0
    second = callers.enter(Caller("second"), 500)
    for _ in range(10):  # of both of them, in turns
        assert looked.acquire(timeout=30)
    assert not slow.gone
    compute(computing)
    assert first.result(30).state == ADMITTED
    assert not second.done()
    queue.slow._waits.clear()
    slow.leave()


def test_what_fails_or_computes_nothing_leaves_its_slot_before_its_caller_has_the_answer() -> None:
    queue = queue_of(slots=1)
    for state in (ADMITTED, RUNNING):
        with queue.enter(Leaving("slow").caller, plan(1)) as permit:
            if state == RUNNING:
                permit.started()
                permit.computed(1.0, 0, warm=True)
        assert (queue.load().waiting_calls, queue.load().admitted_bytes) == (0, 20)
        permit.release()
    assert queue.load().admitted_bytes == 0


def test_a_caller_leaves_half_of_the_bytes_of_small_calls_to_others() -> None:
    callers = Callers(queue := queue_of(total=2560))
    queue.enter(Caller("a"), plan(2560))
    greedy = [queue.enter(Leaving("greedy").caller, plan(10)) for _ in range(8)]
    waits = callers.enter(Leaving("greedy").caller, 10)
    other = callers.enter(Leaving("other").caller, 10).result(30)
    assert not waits.done()
    assert other.state == ADMITTED
    for permit in greedy[:2]:
        compute(permit)
        permit.release()
    assert waits.result(30).state == ADMITTED


def test_callers_take_turns_in_the_queue_for_bytes() -> None:
    callers = Callers(queue_of(total=1))
    before = callers.queue.enter(Caller("x"), plan(1))
    waiting = {name: callers.enter(Caller(name[0]), 1) for name in ("a1", "a2", "a3", "b1")}
    order = []
    for _ in range(4):
        compute(before)
        eventually(lambda: any(future.done() for name, future in waiting.items() if name not in order))
        (name,) = (name for name, future in waiting.items() if future.done() and name not in order)
        order.append(name)
        before = waiting[name].result()
    assert order == ["a1", "b1", "a2", "a3"]


def test_a_queued_call_whose_caller_is_gone_makes_way_for_the_next_at_once() -> None:
    callers = Callers(queue_of(total=10))
    callers.queue.enter(Caller("a"), plan(6))
    leaving = Leaving("b")
    large, small = callers.enter(leaving.caller, 8), callers.enter(Caller("c"), 1)
    leaving.leave()
    assert small.result(30).state == ADMITTED
    with pytest.raises(DeadlineExceededError, match="--max-admitted-bytes"):
        large.result(30)
    assert callers.queue.load().admitted_bytes == 140


def test_a_queued_call_waits_until_its_deadline() -> None:
    callers = Callers(queue_of(total=1))
    callers.queue.enter(Caller("a"), plan(1))
    with pytest.raises(DeadlineExceededError, match="Expected 20 bytes of memory, out of the 20"):
        callers.queue.enter(Leaving("b", remaining_s=0.01).caller, plan(1))
    assert callers.queue.load().waiting_calls == 1


def test_a_caller_may_take_half_of_the_free_slots() -> None:
    clock = [0.0]
    queue = queue_of(slots=15, clock=lambda: clock[0])
    for name, expected in (("greedy", 8), ("second", 4), ("third", 2), ("fourth", 1)):
        for _ in range(expected):
            queue.enter(Caller(name), plan(1))
        if name == "greedy":
            with pytest.raises(OverloadedError, match="while 8 are in it, 8 of them yours, out of the 16"):
                queue.enter(Caller(name), plan(1))
            clock[0] += 1
    assert queue.load().waiting_calls == 15


def known(queue: AdmissionQueue, seconds: float) -> None:
    compute(queue.enter(Caller("x"), plan(1)), seconds)


def test_an_overloaded_server_admits_only_what_it_computes_soon() -> None:
    clock = [0.0]
    queue = queue_of(slots=9, clock=lambda: clock[0])
    known(queue, 0.1)
    permits = [queue.enter(Caller("a"), plan(1)) for _ in range(5)]
    with pytest.raises(OverloadedError) as refusal:
        queue.enter(Caller("a"), plan(1))
    assert refusal.value.retry_after_s == pytest.approx(0.5)
    for permit in permits[:2]:
        compute(permit, 0.1)
    clock[0] = 0.9
    with pytest.raises(OverloadedError):  # three are before it, though there are slots
        queue.enter(Caller("a"), plan(1))
    queue.enter(Caller("polite"), plan(1))  # a caller that has nothing there is admitted all the same
    clock[0] = 1.1  # what it refused meanwhile would have had slots
    queue.enter(Caller("a"), plan(1))


def test_a_server_stays_overloaded_while_it_refuses_more_calls_than_there_are_slots() -> None:
    clock = [0.0]
    queue = queue_of(slots=9, clock=lambda: clock[0])
    known(queue, 0.1)
    permits = [queue.enter(Caller("a"), plan(1)) for _ in range(5)]

    def refused(times: int) -> None:
        for _ in range(times):
            with pytest.raises(OverloadedError):
                queue.enter(Caller("a"), plan(1))

    refused(1)
    compute(permits[0], 0.1)
    clock[0] = 0.9
    refused(6)  # with that of the last second, and the four that are in it, one too many
    clock[0] = 1.8
    refused(1)  # likewise
    clock[0] = 2.7
    refused(1)  # of few there are slots for all
    clock[0] = 2.8
    queue.enter(Caller("a"), plan(1))


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_others_are_not() -> None:
    queue = queue_of()
    known(queue, 2.0)
    compute(queue.enter(Caller("x"), plan(6)), 2.0)
    hasty = Leaving("a", remaining_s=1.5).caller
    for _ in range(2):
        queue.enter(hasty, plan(1))
    with pytest.raises(DeadlineExceededError, match=r"Received 1\.5 seconds, and your calls .* take 2 at least"):
        queue.enter(hasty, plan(1))
    queue.enter(Leaving("a", remaining_s=2.5).caller, plan(1))
    queue.enter(Leaving("a", remaining_s=0.1).caller, plan(6))  # which has turns of its own
    queue.enter(Leaving("b", remaining_s=0.1).caller, plan(1))  # which takes turns with the others
    queue.enter(Caller("a"), plan(1))


@pytest.mark.parametrize(("samples", "ahead_s"), [(1, 4), (6, 2)])
def test_calls_of_one_kind_wait_for_as_long_as_their_computations_at_once_take(samples: int, ahead_s: int) -> None:
    queue = AdmissionQueue(2000, 4, (1, 2), 100)
    compute(queue.enter(Caller("x"), plan(samples)), 2.0)
    for _ in range(2):
        queue.enter(Caller("a"), plan(samples))
    late = Leaving("a", remaining_s=ahead_s / 2 - 0.1).caller  # half of what was measured is certain
    with pytest.raises(DeadlineExceededError, match=f"your calls .* take {ahead_s // 2} at least"):
        queue.enter(late, plan(samples))
    queue.enter(Caller("a"), plan(samples))
    queue.enter(Caller("b"), plan(samples))
    with pytest.raises(OverloadedError, match="4 are in it, 3 of them yours, out of the 6") as refusal:
        queue.enter(Caller("a"), plan(samples))
    assert refusal.value.retry_after_s == min(2 * ahead_s, 5)


def test_an_overloaded_server_takes_small_calls_that_wait_for_no_large_ones() -> None:
    queue = AdmissionQueue(10**6, 8, (1, 2), 100, lambda: 0.0)
    for samples, seconds in ((1, 0.001), (6, 2.0)):
        compute(queue.enter(Caller("x"), plan(samples)), seconds)
    for _ in range(5):
        queue.enter(Caller("a"), plan(6))
    with pytest.raises(OverloadedError) as refusal:
        queue.enter(Caller("a"), plan(6))
    assert refusal.value.retry_after_s == 5
    for _ in range(2):
        queue.enter(Caller("b"), plan(1))
    with pytest.raises(OverloadedError) as refusal:
        queue.enter(Caller("b"), plan(1))
    assert refusal.value.retry_after_s == 0.05


def test_cold_computations_do_not_count_for_estimates() -> None:
    queue = queue_of()
    compute(queue.enter(Caller("a"), plan(1)), 1000.0, warm=False)
    for _ in range(3):
        queue.enter(Leaving("a", remaining_s=0.1).caller, plan(1))


def test_callers_that_cannot_be_told_apart_may_take_all_slots() -> None:
    queue = queue_of(slots=15)
    many = Caller("unix:", is_identified=False)
    for _ in range(16):
        queue.enter(many, plan(1))
    with pytest.raises(OverloadedError):
        queue.enter(many, plan(1))


def test_failed_calls_keep_their_slots() -> None:
    queue = queue_of()
    permits = [queue.enter(Caller("a"), plan(1)) for _ in range(3)]
    for permit in permits:
        permit.started()
    for permit in permits:
        permit.computed(1.0, 0, False)
    assert (queue.load().waiting_calls, queue.load().running_calls) == (3, 0)
    for permit in permits:
        compute(permit)
    assert (queue.load().waiting_calls, queue.load().admitted_bytes) == (0, 0)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["add_done_callback", "is_active"])
@pytest.mark.parametrize("is_queued", [False, True])
def test_a_call_whose_caller_raises_takes_nothing(step: str, kind: type[BaseException], is_queued: bool) -> None:
    def fail(*_: Any) -> Any:
        raise kind(step)

    queue = queue_of(total=1)
    before = queue.enter(Caller("a"), plan(1)) if is_queued else None
    if step == "add_done_callback" or is_queued:
        with pytest.raises(kind, match=step):
            queue.enter(Caller("b")._replace(**{step: fail}), plan(1))
    if before is not None:
        compute(before)
    load = queue.load()
    assert (load.admitted_bytes, load.waiting_calls, load.running_calls) == (0, 0, 0)
    compute(queue.enter(Caller("c"), plan(1)))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from(["stay", "leave", "fail"]))))
def test_all_slots_and_bytes_are_free_in_the_end(steps: list[tuple[str, int, str]]) -> None:
    callers, most = Callers(queue_of(total=8, slots=200)), [0]
    lock = threading.Lock()

    def call(name: str, samples: int, ends: str) -> Any:
        caller = Leaving(name)
        with callers.queue.enter(caller.caller, plan(samples)) as permit:
            with lock:
                most[0] = max(most[0], callers.queue.load().admitted_bytes)
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
    load = callers.queue.load()
    assert (load.admitted_bytes, load.waiting_calls, load.running_calls) == (0, 0, 0)
    assert most[0] <= 160
    assert not callers.queue._ahead_s


def test_a_deadline_within_which_no_device_computes_so_much_is_refused() -> None:
    queue = AdmissionQueue(10**9, 100, (1, 1), 10**9, flops_per_s=1e6)
    large = replace(plan(1), flops=80_000_000)  # ten seconds of a device eight times as fast as measured
    for name, remaining_s in (("a", 9.0), ("b", 0.1)):
        with pytest.raises(DeadlineExceededError, match="80000000 FLOPs of this call take 10 at least"):
            queue.enter(Leaving(name, remaining_s).caller, large)
    assert queue.load().waiting_calls == 0
    for remaining_s in (11.0, math.inf):
        queue.enter(Leaving("c", remaining_s).caller, large).release()
    compute(queue.enter(Leaving("d").caller, large, is_dense=lambda: False), seconds=1)  # taps on padding were skipped
    with pytest.raises(DeadlineExceededError, match="80000000 FLOPs of this call take 10 at least"):
        queue.enter(Leaving("a", 2.0).caller, large)
    quick = queue.enter(Leaving("d").caller, large)
    compute(quick, seconds=8)  # ten times as fast as it was measured at first
    queue.enter(Leaving("e", 2.0).caller, large).release()
