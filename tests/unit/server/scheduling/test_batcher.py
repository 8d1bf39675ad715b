"""The batcher: waiting jobs go together, each caller gets its own result, and no job waits for a free device."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.errors import DeadlineExceededError, OutOfMemoryError
from convserve_server.scheduling.batcher import Batcher, Batching, Job
from convserve_server.scheduling.caller import Caller
from tests.support.waiting import eventually, waiting_jobs

ANYBODY = Caller()


def always() -> bool:
    return True


class Task(Job):
    """A job that says what it is."""

    __slots__ = ("task",)

    def __init__(self, task: Any, group: Hashable | None, samples: int, size: int, caller: Caller) -> None:
        super().__init__(group, samples, size, caller)
        self.task = task


def run(
    batcher: Batcher[Task],
    task: Any,
    *,
    group: Hashable | None = None,
    samples: int = 1,
    size: int = 1,
    caller: Caller = ANYBODY,
) -> Any:
    return batcher.run(Task(task, group, samples, size, caller))


@dataclass
class GatedBatcher:
    """A batcher whose computations each wait until the test lets them go on.

    Attributes:
        started: (device, tasks, thread) of each computation, in the order in which they began.
        fail: Called with the tasks of a computation before it is answered.
    """

    devices: int = 1
    concurrent: int = 1
    max_samples: int = 1000
    max_bytes: int = 1000
    fail: Callable[[Sequence[Any]], None] = lambda _: None
    held: bool = True
    started: list[tuple[int, list[Any], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._gates: list[threading.Event] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(32)
        batching = Batching(self.concurrent, self.max_samples, self.max_bytes)
        self.batcher: Batcher[Task] = Batcher(self._compute, self.devices, batching)

    def _compute(self, device: int, jobs: Sequence[Task]) -> list[Any]:
        tasks = [job.task for job in jobs]
        gate = threading.Event()
        with self._lock:
            self.started.append((device, tasks, threading.get_ident()))
            self._gates.append(gate)
        if self.held:
            assert gate.wait(30)
        self.fail(tasks)
        return [(task, len(tasks)) for task in tasks]

    def submit(
        self,
        task: Any,
        group: Hashable | None = "g",
        samples: int = 1,
        size: int = 1,
        wanted: Callable[[], bool] = always,
        caller: str = "",
    ) -> Future[Any]:
        """Lets a thread of its own run a task, and returns once it is computed or waits."""
        before = len(self.started) + self.waiting
        arguments = {
            "group": group,
            "samples": samples,
            "size": size,
            "caller": Caller(caller, is_active=wanted),
        }
        future = self._pool.submit(run, self.batcher, task, **arguments)
        eventually(lambda: len(self.started) + self.waiting > before)
        return future

    def release(self, number: int) -> None:
        """Lets the computation that began as this number go on, which it has to have begun."""
        eventually(lambda: len(self._gates) > number)
        self._gates[number].set()

    def close(self) -> None:
        self.held = False
        for gate in self._gates:
            gate.set()
        self._pool.shutdown()

    @property
    def waiting(self) -> int:
        return waiting_jobs(self.batcher)

    @property
    def tasks(self) -> list[list[Any]]:
        return [tasks for _, tasks, _ in self.started]


@contextmanager
def gated(**options: Any) -> Iterator[GatedBatcher]:
    made = GatedBatcher(**options)
    try:
        yield made
    finally:
        made.close()


def answers(*futures: Future[Any]) -> list[Any]:
    return [future.result(30) for future in futures]


def test_a_free_device_computes_at_once_in_the_callers_own_thread() -> None:
    with gated(held=False) as d:
        for task in range(3):
            assert run(d.batcher, task, group="g") == (task, 1)
        assert [(device, tasks) for device, tasks, _ in d.started] == [(0, [0]), (0, [1]), (0, [2])]
        assert {thread for _, _, thread in d.started} == {threading.get_ident()}


def test_waiting_jobs_of_a_group_are_computed_together_oldest_first() -> None:
    with gated() as d:
        first = d.submit("first", "other")
        futures = [d.submit(f"{group}{n}", group) for group, n in ("b0", "a1", "b2", "a3", "b4")]
        assert d.waiting == 5
        for number in range(3):
            d.release(number)
        assert answers(first, *futures) == [("first", 1), ("b0", 3), ("a1", 2), ("b2", 3), ("a3", 2), ("b4", 3)]
        assert d.tasks == [["first"], ["b0", "b2", "b4"], ["a1", "a3"]]
        assert d.waiting == 0


def test_a_group_that_goes_on_calling_does_not_starve_another() -> None:
    with gated(max_samples=2) as d:
        futures = [d.submit(name, name[0]) for name in ("x", "a0", "a1", "a2", "b0", "a3")]
        for number in range(4):
            d.release(number)
        answers(*futures)
        assert d.tasks == [["x"], ["a0", "a1"], ["a2", "a3"], ["b0"]]  # a2 waited longer than b0


@pytest.mark.parametrize(
    ("bounds", "amounts", "expected"),
    [
        ({"max_samples": 5}, [(2, 1), (3, 1), (1, 1)], [[0, 1], [2]]),
        ({"max_samples": 5}, [(2, 1), (4, 1), (1, 1)], [[0], [1, 2]]),
        ({"max_bytes": 10}, [(1, 6), (1, 4), (1, 1)], [[0, 1], [2]]),
        ({"max_samples": 5}, [(9, 1), (1, 1)], [[0], [1]]),  # what is larger goes alone
        ({"max_samples": 1}, [(1, 1), (1, 1)], [[0], [1]]),
    ],
)
def test_batches_are_bounded_and_stay_in_order(
    bounds: dict[str, int], amounts: list[tuple[int, int]], expected: list[list[int]]
) -> None:
    with gated(**bounds) as d:
        futures = [d.submit("first", "other")]
        futures += [d.submit(number, "g", *amount) for number, amount in enumerate(amounts)]
        for number in range(1 + len(expected)):
            d.release(number)
        answers(*futures)
        assert d.tasks == [["first"], *expected]


def test_small_tasks_do_not_wait_for_large_ones_nor_large_ones_for_small() -> None:
    with gated(max_bytes=10) as d:
        large = [d.submit(f"large{number}", size=11) for number in range(3)]
        assert d.tasks == [["large0"]]
        small = [d.submit(f"small{number}", size=5) for number in range(3)]
        assert d.tasks == [["large0"], ["small0"]]
        assert d.waiting == 4
        d.release(1)
        eventually(lambda: len(d.started) == 3)
        d.release(0)
        eventually(lambda: len(d.started) == 4)
        for number in (3, 4, 2):
            d.release(number)
        assert answers(*large, *small) == [
            *((f"large{number}", 1) for number in range(3)),
            ("small0", 1), ("small1", 2), ("small2", 2),
        ]  # fmt: skip


def test_several_large_tasks_are_computed_at_once_and_small_ones_still_gather() -> None:
    with gated(max_bytes=10, concurrent=2) as d:
        large = [d.submit(f"large{number}", size=11) for number in range(3)]
        small = [d.submit(f"small{number}", size=5) for number in range(3)]
        assert d.tasks == [["large0"], ["large1"], ["small0"]]
        d.release(1)
        eventually(lambda: len(d.started) == 4)
        d.release(2)
        eventually(lambda: len(d.started) == 5)
        assert d.tasks[3:] == [["large2"], ["small1", "small2"]]
        for number in (0, 3, 4):
            d.release(number)
        answers(*large, *small)


def test_a_device_that_is_busy_with_a_large_task_is_the_last_to_get_a_small_one() -> None:
    with gated(devices=2, max_bytes=10) as d:
        futures = [d.submit(number, size=size) for number, size in enumerate((11, 1, 1, 11))]
        assert [device for device, _, _ in d.started] == [0, 1, 0, 1]
        for number in range(4):
            d.release(number)
        answers(*futures)


def test_jobs_without_a_group_are_computed_alone() -> None:
    with gated() as d:
        futures = [d.submit(task, group) for task, group in (("x", None), ("y", None), ("z", None), ("a", "g"))]
        for number in range(4):
            d.release(number)
        assert answers(*futures) == [("x", 1), ("y", 1), ("z", 1), ("a", 1)]


def test_jobs_whose_callers_are_gone_are_not_computed() -> None:
    gone: set[str] = set()
    with gated() as d:
        futures = {name: d.submit(name, wanted=lambda name=name: name not in gone) for name in "xabcd"}
        alone = d.submit("e", None, wanted=lambda: "e" not in gone)
        gone |= set("ace")  # the leader of the next batch, a member, and one in no group
        d.release(0)
        d.release(1)
        assert answers(futures["x"], futures["b"], futures["d"]) == [("x", 1), ("b", 2), ("d", 2)]
        for future in (futures["a"], futures["c"], alone):
            with pytest.raises(DeadlineExceededError, match="not computed"):
                future.result(30)
        assert d.tasks == [["x"], ["b", "d"]]
        gone.clear()
        d.held = False
        assert d.submit("after").result(30) == ("after", 1)  # the device is free again


def test_callers_take_turns_however_many_tasks_one_brings() -> None:
    with gated() as d:
        futures = [d.submit(task, None, caller=task[0]) for task in ("x", "a1", "a2", "a3", "b1", "b2", "c1")]
        for number in range(7):
            d.release(number)
        answers(*futures)
        assert d.tasks == [["x"], ["a1"], ["b1"], ["c1"], ["a2"], ["b2"], ["a3"]]


def test_a_batch_takes_its_group_in_the_order_of_arrival() -> None:
    with gated(max_samples=2) as d:
        futures = [d.submit(task, group, caller=task[0]) for task, group in (
            ("x", "h"), ("a1", "h"), ("a2", "g"), ("b1", "g"), ("a3", "g"), ("b2", "h"))]  # fmt: skip
        for number in range(4):
            d.release(number)
        answers(*futures)
        assert d.tasks == [["x"], ["a1", "b2"], ["b1", "a2"], ["a3"]]


def test_a_job_that_waited_is_gone_when_it_is_computed_though_its_caller_is_not() -> None:
    callbacks: list[Callable[[], None]] = []
    with gated() as d:
        d.submit("first")
        caller = Caller(add_done_callback=lambda each: callbacks.append(each) or True)
        job: Task | None = Task("second", None, 1, 1, caller)
        gone = weakref.ref(job)
        second = ThreadPoolExecutor(1).submit(d.batcher.run, job)
        job = None
        eventually(lambda: d.waiting == 1 and bool(callbacks))
        d.release(0)
        d.release(1)
        assert second.result(30) == ("second", 1)
        eventually(lambda: gone() is None)
        callbacks[0]()


def test_a_queued_job_ends_as_soon_as_its_caller_is_gone() -> None:
    with gated() as d:
        first, calls = d.submit("x"), []
        leaving = Caller(is_active=lambda: not calls, add_done_callback=lambda call: calls.append(call) or True)
        pool = ThreadPoolExecutor(1)
        gone = pool.submit(run, d.batcher, "gone", group="g", caller=leaving)
        eventually(lambda: d.waiting == 1 and bool(calls))
        stays = d.submit("stays")
        calls[0]()
        with pytest.raises(DeadlineExceededError, match="not computed"):
            gone.result(30)
        assert d.waiting == 1
        d.release(0)
        d.release(1)
        assert answers(first, stays) == [("x", 1), ("stays", 1)]
        calls[0]()  # which changes nothing any more
        pool.shutdown()


def test_a_failed_batch_is_computed_one_by_one_and_only_the_wrong_job_fails() -> None:
    def fail(tasks: Sequence[Any]) -> None:
        if "bad" in tasks:
            raise ValueError(f"bad of {len(tasks)}")

    with gated(fail=fail) as d:
        futures = [d.submit(task) for task in ("x", "a", "bad", "b")]
        d.held = False
        d.release(0)
        d.release(1)
        assert answers(futures[0], futures[1], futures[3]) == [("x", 1), ("a", 1), ("b", 1)]
        with pytest.raises(ValueError, match="bad of 1"):
            futures[2].result(30)
        assert d.tasks == [["x"], ["a", "bad", "b"], ["a"], ["bad"], ["b"]]


def test_a_batch_that_is_too_large_for_the_device_is_computed_one_by_one() -> None:
    def fail(tasks: Sequence[Any]) -> None:
        if len(tasks) > 1:
            raise OutOfMemoryError("too many")

    with gated(fail=fail) as d:
        futures = [d.submit(task) for task in range(4)]
        d.held = False
        d.release(0)
        d.release(1)
        assert answers(*futures) == [(task, 1) for task in range(4)]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["add_done_callback", "is_active", "_take_group", "compute", "finish"])
def test_whatever_a_step_raises_every_job_ends_and_the_device_is_free(
    step: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise kind(step)

    with gated() as d:
        callbacks: dict[str, Any] = {"add_done_callback": lambda _: True}
        if step == "_take_group":
            take_group = d.batcher._take_group
            monkeypatch.setattr(d.batcher, step, lambda *batch: (take_group(*batch), fail()))
        elif step == "compute":
            d.fail = lambda tasks: fail() if "bad" in tasks else None
        elif step == "finish":
            monkeypatch.setattr(Task, step, fail)
        else:
            callbacks[step] = fail
        first = d.submit("first", None)
        bad = d._pool.submit(run, d.batcher, "bad", group="g", caller=Caller(**callbacks))
        eventually(lambda: d.waiting or bad.done())
        member = d.submit("member")
        d.held = False
        d.release(0)
        with pytest.raises(kind, match=step):
            bad.result(30)
        assert first.exception(30) is None or step == "finish"
        if step in ("_take_group", "finish") or (step == "compute" and kind is KeyboardInterrupt):
            assert isinstance(member.exception(30), kind)
        elif step == "compute":  # with an error of this kind the batch is computed again, one by one
            assert member.result(30) == ("member", 1)
        else:
            assert member.exception(30) is None or isinstance(member.exception(), kind)
        monkeypatch.undo()
        assert run(d.batcher, "after") == ("after", 1)
        assert (d.waiting, d.batcher._free, d.batcher._groups) == (0, ([1], [1]), {})


def test_a_group_that_cannot_be_hashed_does_not_stay_in_the_queue() -> None:
    with gated() as d:
        first = d.submit("first")
        with pytest.raises(TypeError, match="unhashable"):
            run(d.batcher, "bad", group=[])
        assert d.waiting == 0
        d.release(0)
        answers(first)
        d.held = False
        with pytest.raises(TypeError, match="unhashable"):
            run(d.batcher, "bad", group=[])
        assert run(d.batcher, "after") == ("after", 1)


def test_a_failure_keeps_no_tensor_alive() -> None:
    """An exception that its own traceback keeps alive would hold the input until the garbage collector comes by."""
    import gc
    import weakref

    class Task:
        pass

    def fail(tasks: Sequence[Any]) -> None:
        raise ValueError

    gc.disable()
    try:
        with gated(fail=fail, held=False) as d:
            task = Task()
            alive = weakref.ref(task)
            with pytest.raises(ValueError, match=r"^$"):
                run(d.batcher, task)
            d.started.clear()
            del task
            assert alive() is None
    finally:
        gc.enable()


def test_the_device_with_the_least_to_do_is_next() -> None:
    with gated(devices=3, concurrent=2, max_bytes=1) as d:
        futures = [d.submit(task, size=2) for task in range(6)]
        assert [device for device, _, _ in d.started] == [0, 1, 2, 0, 1, 2]
        waiting = [d.submit(task, size=2) for task in (6, 7)]
        assert d.waiting == 2
        d.release(4)  # on device 1
        eventually(lambda: len(d.started) == 7)
        d.release(2)  # on device 2
        eventually(lambda: len(d.started) == 8)
        assert [device for device, _, _ in d.started[6:]] == [1, 2]
        for number in range(8):
            d.release(number)
        answers(*futures, *waiting)


def test_a_slow_device_leaves_the_work_to_the_other() -> None:
    with gated(devices=2) as d:
        slow = d.submit("slow", None)
        for number in range(1, 5):
            future = d.submit(number, None)
            d.release(number)
            answers(future)
        assert [device for device, _, _ in d.started] == [0, 1, 1, 1, 1]
        d.release(0)
        answers(slow)


class Engine:
    """Computes sums of what each task brings, and notices if it is asked for more than it may be."""

    def __init__(self, devices: int, concurrent: int, max_samples: int) -> None:
        self.most, self.max_samples = (1, concurrent), max_samples
        self.running = [[0] * devices, [0] * devices]
        self.lock = threading.Lock()

    def compute(self, device: int, jobs: Sequence[Task]) -> list[tuple[int, int]]:
        tasks = [job.task for job in jobs]
        samples = sum(len(rows) for _, rows in tasks)
        is_large = len(tasks) == 1 and samples == LARGE
        lane = self.running[is_large]
        with self.lock:
            lane[device] += 1
            assert lane[device] <= self.most[is_large]
        assert len({group for group, _ in tasks}) == 1
        assert len(tasks) == 1 or samples <= self.max_samples
        assert len(tasks) == 1 or LARGE not in {len(rows) for _, rows in tasks}
        time.sleep(0)
        with self.lock:
            lane[device] -= 1
        if any(-1 in rows for _, rows in tasks):
            raise ValueError("-1")
        return [(sum(rows), samples) for _, rows in tasks]


LARGE = 5
CALLS = st.tuples(
    st.sampled_from(["a", "b", None]),
    st.lists(st.integers(-1, 5), min_size=1, max_size=LARGE),
    st.sampled_from([True, True, True, False]),
)


@settings(max_examples=60)
@given(
    callers=st.lists(st.lists(CALLS, min_size=1, max_size=6), min_size=1, max_size=12),
    devices=st.integers(1, 3),
    concurrent=st.integers(1, 2),
    max_samples=st.integers(1, 12),
)
def test_every_caller_gets_its_own_result(
    callers: list[list[tuple[str | None, list[int], bool]]], devices: int, concurrent: int, max_samples: int
) -> None:
    engine = Engine(devices, concurrent, max_samples)
    batcher = Batcher(engine.compute, devices, Batching(concurrent, max_samples, 100))
    start = threading.Barrier(len(callers))
    numbers = itertools.count()

    def call(calls: list[tuple[str | None, list[int], bool]]) -> list[tuple[Any, Any, Any]]:
        start.wait(30)
        answers = []
        for group, rows, wanted in calls:
            name = group or f"alone {next(numbers)}"
            try:
                answer: Any = run(
                    batcher,
                    (name, rows),
                    group=group,
                    samples=len(rows),
                    size=101 if len(rows) == LARGE else 1,
                    caller=Caller(is_active=lambda wanted=wanted: wanted),
                )
            except (ValueError, DeadlineExceededError) as error:
                answer = type(error)
            answers.append((rows, wanted, answer))
        return answers

    with ThreadPoolExecutor(len(callers)) as pool:
        for rows, wanted, answer in itertools.chain.from_iterable(pool.map(call, callers)):
            if not wanted:
                assert answer is DeadlineExceededError
            elif -1 in rows:
                assert answer is ValueError
            else:
                total, samples = answer
                assert total == sum(rows)
                assert len(rows) <= samples <= max(len(rows), max_samples)
                assert len(rows) < LARGE or samples == LARGE
    assert waiting_jobs(batcher) == 0
    assert engine.running == [[0] * devices] * 2
