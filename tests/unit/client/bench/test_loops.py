"""Closed and open loops: how many calls are made, what is kept of them, and from when a latency counts."""

import threading
import time

import pytest

from convserve.bench import loops
from convserve.bench.loops import Subject, closed_loop, open_loop


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """An open loop begins every call, however late a busy machine lets it."""
    monkeypatch.setattr(loops, "_GRACE_S", 60.0)


def test_every_caller_of_a_closed_loop_calls_at_least_once():
    called = []
    block = closed_loop(Subject(called.append), callers=5, seconds=0.0)
    assert sorted(called) == [0, 1, 2, 3, 4]
    assert block.answers == len(block.latencies) == 5
    assert block.last == dict.fromkeys(range(5))
    assert not block.failures


def test_a_closed_loop_keeps_a_note_of_each_answer_and_each_callers_last():
    numbers = iter(range(1_000_000))
    block = closed_loop(Subject(lambda _: next(numbers), look=lambda answer: -answer), callers=1, seconds=0.01)
    assert block.notes == [-each for each in range(block.answers)]
    assert block.last == {0: block.answers - 1}
    assert block.seconds >= sum(block.latencies) > 0


def test_callers_of_a_closed_loop_are_there_at_once():
    together = threading.Barrier(4, timeout=20)  # which nobody passes alone
    block = closed_loop(Subject(lambda _: together.wait()), callers=4, seconds=0.0)
    assert block.answers == 4


def test_failures_are_counted_by_their_class():
    outcomes = iter([None, ValueError("first"), KeyError("x"), None, *[ValueError("other")] * 3])

    def call(_):
        outcome = next(outcomes)
        if outcome:
            raise outcome

    block = closed_loop(Subject(call), callers=1, seconds=60.0)
    assert block.failures == {"ValueError": 4, "KeyError": 1}
    assert block.failure == "first"
    assert block.answers == 2


def test_whoever_fails_again_and_again_gives_up():
    def call(_):
        raise OSError

    block = closed_loop(Subject(call), callers=2, seconds=60.0)
    assert block.failures == {"OSError": 6}
    assert (block.answers, block.last) == (0, {})


def test_an_open_loop_makes_the_calls_that_are_due():
    block = open_loop(Subject(lambda caller: caller, look=lambda _: 1), rate=1000.0, seconds=0.05)
    assert (block.answers, block.not_begun, len(block.notes)) == (50, 0, 50)


def test_a_rate_of_less_than_one_call_still_makes_one():
    assert open_loop(Subject(lambda _: None), rate=0.5, seconds=0.1).answers == 1


def test_a_latency_of_an_open_loop_counts_from_when_the_call_was_due(monkeypatch):
    monkeypatch.setattr(loops, "_MAX_WAITING", 1)
    first = iter([0.2])
    block = open_loop(Subject(lambda _: time.sleep(next(first, 0.0))), rate=100.0, seconds=0.1)
    # The calls were due every 10 ms, and waited for the first one's 200 ms: what a closed loop would not show.
    assert block.answers == 10
    for index, latency in enumerate(block.latencies):
        assert latency >= 0.2 - index / 100


def test_what_an_open_loop_could_not_begin_is_counted_with_the_time_it_waited(monkeypatch):
    monkeypatch.setattr(loops, "_MAX_WAITING", 1)
    monkeypatch.setattr(loops, "_GRACE_S", 0.0)
    # The one caller has a second in which it begins the first call, whose answer comes after that.
    block = open_loop(Subject(lambda _: time.sleep(1.2)), rate=10.0, seconds=1.0)
    assert (block.answers, block.not_begun) == (1, 9)
    assert len(block.latencies) == 10
    assert min(block.latencies) >= 0.1
    assert block.latencies[1:] == sorted(block.latencies[1:], reverse=True)


def test_failures_of_an_open_loop_are_no_latencies():
    def call(_):
        raise OSError("no")

    block = open_loop(Subject(call), rate=1000.0, seconds=0.01)
    assert (block.answers, block.not_begun, block.failures) == (0, 0, {"OSError": 10})


@pytest.mark.parametrize("loop", [lambda s: closed_loop(s, 2, 60.0), lambda s: open_loop(s, 50.0, 60.0)])
def test_ctrl_c_ends_a_loop(loop, monkeypatch):
    entered = threading.Event()
    stopped = []

    def join(thread):
        entered.wait(20)
        raise KeyboardInterrupt

    def call(_):
        entered.set()
        stopped.append(1)
        time.sleep(0.001)

    monkeypatch.setattr(threading.Thread, "join", join)
    with pytest.raises(KeyboardInterrupt):
        loop(Subject(call))
    monkeypatch.undo()
    for thread in threading.enumerate():
        if thread.daemon and "work" in thread.name:
            thread.join(20)
            assert not thread.is_alive()
    assert stopped
