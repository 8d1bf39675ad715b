"""Dynamic batching without a timer: while the devices are busy calls gather, and when one is free they go together.

A caller that finds a device free computes at once, in its own thread. One that finds none waits. Whoever finishes hands
its device to the thread of the call whose turn it is (callers take turns, each one's calls come in their order), which
takes along the calls of its group that wait too:

    caller -> device free? --yes--> compute -> hand the device on -> answer
                  |                    ^              |
                  no                   | leads,       | next in turn
                  v                    | with its     v
               waits ------------------+--- group <---+
                  |
                  +--> its leader has computed it ------------------> answer

Calls that are too large to be computed together with others have turns of their own on every device, so that small
ones never wait for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar, cast

from convserve.errors import DeadlineExceededError
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.fair_queue import FairQueue

_SMALL, _LARGE = range(2)  # lanes: calls that may be computed together with others, and those that are too large

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class _Entry(Generic[Task, Answer]):
    """A task on its way. All but the outcome is written under the batcher's lock, or before others know it."""

    __slots__ = (
        "answer",
        "caller",
        "device",
        "error",
        "finished",
        "group",
        "lane",
        "samples",
        "size",
        "task",
        "turn",
    )

    def __init__(
        self,
        task: Task,
        group: Hashable | None,
        samples: int,
        size: int,
        caller: Caller,
    ) -> None:
        self.task, self.group, self.samples, self.size, self.caller = task, group, samples, size, caller
        self.lane = _SMALL
        self.turn: threading.Lock | None = None  # held until it leads, or is finished, by the thread that waits for it
        self.device: int | None = None  # what it leads on
        self.finished = False
        self.answer: Answer | None = None
        self.error: BaseException | None = None

    def finish(self, answer: Answer | None, error: BaseException | None = None) -> None:
        self.answer, self.error, self.finished = answer, error, True

    def wake(self) -> None:
        """Wakes the thread that waits for its outcome, or for its turn."""
        assert self.turn is not None  # noqa: S101 (its thread waits)
        self.turn.release()

    def outcome(self) -> Answer:
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return cast(Answer, self.answer)  # it is finished
        finally:
            del error  # else it and its traceback, in which the task is, would keep each other


class Batcher(Generic[Task, Answer]):
    """Lets the threads that bring tasks compute them, together where they may be. It may be used from any thread."""

    def __init__(
        self,
        compute: Callable[[int, Sequence[Task]], Sequence[Answer]],
        *,
        devices: int,
        concurrent: int,
        max_samples: int,
        max_bytes: int,
    ) -> None:
        """Prepares to compute.

        Args:
            compute: Computes tasks of one group on a device, which it is given the number of; one answer per task.
            devices: How many devices there are.
            concurrent: How many computations a device has at once: of tasks up to `max_bytes`, and of larger ones.
            max_samples: The most samples of several tasks that are computed together.
            max_bytes: The most bytes of several tasks that are computed together.
        """
        self._compute = compute
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._lock = threading.Lock()
        # For each lane: how many more computations each device may have.
        self._free = ([concurrent] * devices, [concurrent] * devices)
        # Those that wait, by lane; and those of each group, in the order of their arrival.
        self._lines: tuple[FairQueue[_Entry[Task, Answer]], ...] = (FairQueue(), FairQueue())
        self._groups: dict[Hashable, deque[_Entry[Task, Answer]]] = {}

    @property
    def waiting(self) -> int:
        """How many tasks wait for a device."""
        return sum(map(len, self._lines))

    def run(self, task: Task, *, group: Hashable | None, samples: int, size: int, caller: Caller) -> Answer:
        """Returns a task's answer once it is computed.

        Args:
            task: What `compute` is given.
            group: What tasks that may be computed together have in common; None for one that goes alone.
            samples: How many samples it has.
            size: How many bytes it takes while it is computed.
            caller: Who waits for the answer. One that does not any more leaves the line at once.

        Raises:
            DeadlineExceededError: If it did not wait any more when it was its turn.
            Exception: Whatever `compute` raises for this task alone.
        """
        entry = _Entry[Task, Answer](task, group, samples, size, caller)
        device = self._enter(entry)
        if device is None:
            self._watch(entry)
            assert entry.turn is not None  # noqa: S101 (it was just set)
            entry.turn.acquire()
            device = entry.device
        if not entry.finished:
            assert device is not None  # noqa: S101 (whoever woke it gave it one)
            batch = [entry, *self._take_group(entry)]
            self._compute_batch(batch, device)
            for other in batch[1:]:
                other.wake()
        return entry.outcome()

    def _enter(self, entry: _Entry[Task, Answer]) -> int | None:
        """Returns a device that is free, or lets an entry wait."""
        if entry.size > self._max_bytes:
            entry.lane, entry.group = _LARGE, None
        with self._lock:
            device = self._take_device(entry.lane)
            if device is None:
                entry.turn = threading.Lock()
                entry.turn.acquire()
                self._lines[entry.lane].append(entry.caller.name, entry)
                if entry.group is not None:
                    self._groups.setdefault(entry.group, deque()).append(entry)
        return device

    def _watch(self, entry: _Entry[Task, Answer]) -> None:
        """Takes an entry out of the line when its caller leaves."""
        caller = entry.caller
        if not caller.add_done_callback(lambda: self._abandon(entry)) and not caller.is_active():
            self._abandon(entry)  # it left before

    def _compute_batch(self, batch: Sequence[_Entry[Task, Answer]], device: int) -> None:
        """Computes a batch, and releases its device."""
        try:
            self._compute_together(batch, device)
        except BaseException as error:
            for entry in batch:
                if not entry.finished:
                    entry.finish(None, error)
        self._release_device(device, batch[0].lane)

    def _compute_together(self, batch: Sequence[_Entry[Task, Answer]], device: int) -> None:
        entries = []
        for entry in batch:
            if entry.caller.is_active():
                entries.append(entry)
            else:
                entry.finish(None, _nobody_waits())
        if not entries:
            return
        try:
            answers = self._compute(device, [entry.task for entry in entries])
        except Exception as error:
            if len(entries) == 1:
                entries[0].finish(None, error)
            else:  # it may be the fault of one of them, or of their number
                for entry in entries:
                    self._compute_together([entry], device)
        else:
            for entry, answer in zip(entries, answers, strict=True):
                entry.finish(answer)

    def _take_device(self, lane: int) -> int | None:
        """Returns the device with the least to do, and makes it busier; None if all are busy."""
        free, others = self._free[lane], self._free[1 - lane]
        device = max(range(len(free)), key=lambda each: (free[each] > 0, free[each] + others[each]))
        if not free[device]:
            return None
        free[device] -= 1
        return device

    def _leave_group(self, entry: _Entry[Task, Answer]) -> None:
        if entry.group is not None:
            group = self._groups[entry.group]
            group.remove(entry)
            if not group:
                del self._groups[entry.group]

    def _abandon(self, entry: _Entry[Task, Answer]) -> None:
        """Lets a task that still waits go unanswered, as nobody waits for it any more."""
        with self._lock:
            if not self._lines[entry.lane].discard(entry.caller.name, entry):
                return
            self._leave_group(entry)
        entry.finish(None, _nobody_waits())
        entry.wake()

    def _take_group(self, leader: _Entry[Task, Answer]) -> list[_Entry[Task, Answer]]:
        """Takes what waits in a leader's group, oldest first, as far as the bounds allow."""
        found = []
        samples, size = leader.samples, leader.size
        with self._lock:
            while leader.group in self._groups:
                entry = self._groups[leader.group][0]
                samples, size = samples + entry.samples, size + entry.size
                if samples > self._max_samples or size > self._max_bytes:
                    break
                self._lines[entry.lane].discard(entry.caller.name, entry)
                self._leave_group(entry)
                found.append(entry)
        return found

    def _release_device(self, device: int, lane: int) -> None:
        """Gives a device to the entry whose turn it is, or sets it free."""
        with self._lock:
            entry = self._lines[lane].take_first()
            if entry is None:
                self._free[lane][device] += 1
                return
            self._leave_group(entry)
        entry.device = device
        entry.wake()


def _nobody_waits() -> DeadlineExceededError:
    return DeadlineExceededError("Expected a caller to wait for the answer. Received none: not computed.")
