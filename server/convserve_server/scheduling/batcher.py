"""Dynamic batching without a timer: while the devices are busy calls gather, and when one is free they go together.

A caller that finds a device free computes at once, in its own thread. One that finds none waits. Whoever finishes
gives its device to the thread of the job whose turn it is (callers take turns, each one's jobs come in their order),
which takes along the jobs of its group that wait too:

    job -> device free? --yes--> compute -> release the device -> result
                |                   ^              |
                no                  | with its     | next in turn
                v                   | group        v
              waits ----------------+--------------+
                |
                +--> computed with its group ------------> result

Jobs that are too large to be computed together with others have turns of their own on every device, so that small
ones never wait for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from convserve.errors import DeadlineExceededError
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.fair_queue import FairQueue

_SMALL, _LARGE = range(2)  # lanes: jobs that may be computed together with others, and those that are too large


class Job:
    """What is to be computed for one caller. The batcher writes all but the first four attributes.

    Attributes:
        group: What jobs that may be computed together have in common; None for one that goes alone.
        samples: How many samples it has.
        size: How many bytes it takes while it is computed.
        caller: Who waits for the result.
        lane: _SMALL or _LARGE.
        turn: Held by the thread that waits, until its job gets a device or is done.
        device: What it computes on.
        is_done: Whether result or error is there.
        result: What came of it.
        error: Why nothing came of it.
    """

    __slots__ = ("caller", "device", "error", "group", "is_done", "lane", "result", "samples", "size", "turn")

    def __init__(self, group: Hashable | None, samples: int, size: int, caller: Caller) -> None:
        self.group, self.samples, self.size, self.caller = group, samples, size, caller
        self.lane = _SMALL
        self.turn: threading.Lock | None = None
        self.device: int | None = None
        self.is_done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def finish(self, result: Any, error: BaseException | None = None) -> None:
        """Sets what came of it."""
        self.result, self.error, self.is_done = result, error, True

    def wake(self) -> None:
        """Wakes the thread that waits."""
        assert self.turn is not None  # noqa: S101 (its thread waits)
        self.turn.release()


AnyJob = TypeVar("AnyJob", bound=Job)


class Batcher(Generic[AnyJob]):
    """Lets the threads that bring jobs compute them, together where they may be. Any thread may call its methods."""

    def __init__(
        self,
        compute: Callable[[int, Sequence[AnyJob]], Sequence[Any]],
        *,
        devices: int,
        concurrent: int,
        max_samples: int,
        max_bytes: int,
    ) -> None:
        """Prepares to compute.

        Args:
            compute: Computes jobs of one group on a device, which it is given the number of; one result per job.
            devices: How many devices there are.
            concurrent: How many computations a device has at once: of jobs up to `max_bytes`, and of larger ones.
            max_samples: The most samples of several jobs that are computed together.
            max_bytes: The most bytes of several jobs that are computed together.
        """
        self._compute = compute
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._lock = threading.Lock()
        # For each lane: how many more computations each device may have.
        self._free = ([concurrent] * devices, [concurrent] * devices)
        # Those that wait, by lane; and those of each group, in the order of their arrival.
        self._queues: tuple[FairQueue[AnyJob], ...] = (FairQueue(), FairQueue())
        self._groups: dict[Hashable, deque[AnyJob]] = {}

    @property
    def waiting(self) -> int:
        """How many jobs wait for a device."""
        return sum(map(len, self._queues))

    def run(self, job: AnyJob) -> Any:
        """Returns a job's result once it is computed.

        Raises:
            DeadlineExceededError: If its caller was gone when it was its turn.
            Exception: Whatever `compute` raises for this job alone.
        """
        self._submit(job)
        if job.turn is not None:
            try:
                self._abandon_when_gone(job)
                job.turn.acquire()
            except BaseException:
                self._abandon(job)
                if job.device is not None and not job.is_done:  # it was its turn already
                    self._release_device(job.device, job.lane)
                raise
        if not job.is_done:
            batch = [job]
            try:
                self._take_group(batch)
                self._compute_together(batch, job.device or 0)
            except BaseException as error:
                for other in batch:
                    if not other.is_done:
                        other.finish(None, error)
            finally:
                self._release_device(job.device or 0, job.lane)
                for other in batch[1:]:
                    other.wake()
        failure, job.error = job.error, None
        try:
            if failure is not None:
                raise failure
            return job.result
        finally:
            del failure  # else it and its traceback, in which the job is, would keep each other

    def _submit(self, job: AnyJob) -> None:
        """Gives a job a device that is free, or lets it wait."""
        if job.size > self._max_bytes:
            job.lane, job.group = _LARGE, None
        with self._lock:
            job.device = self._take_device(job.lane)
            if job.device is None:
                job.turn = threading.Lock()
                job.turn.acquire()
                self._queues[job.lane].append(job.caller.name, job)
                if job.group is not None:
                    self._groups.setdefault(job.group, deque()).append(job)

    def _take_device(self, lane: int) -> int | None:
        """Returns the device with the least to do, and makes it busier; None if all are busy."""
        free, others = self._free[lane], self._free[1 - lane]
        device = max(range(len(free)), key=lambda number: (free[number] > 0, free[number] + others[number]))
        if not free[device]:
            return None
        free[device] -= 1
        return device

    def _release_device(self, device: int, lane: int) -> None:
        """Gives a device to the job whose turn it is, or sets it free."""
        with self._lock:
            job = self._queues[lane].take_first()
            if job is None:
                self._free[lane][device] += 1
                return
            self._leave_group(job)
            job.device = device
        job.wake()

    def _abandon_when_gone(self, job: AnyJob) -> None:
        """Takes a job out of the queue when its caller is gone."""
        caller = job.caller
        if not caller.add_done_callback(lambda: self._abandon(job)) and not caller.is_active():
            self._abandon(job)  # it was gone before

    def _abandon(self, job: AnyJob) -> None:
        with self._lock:
            if not self._queues[job.lane].discard(job.caller.name, job):
                return
            self._leave_group(job)
        job.finish(None, _caller_gone())
        job.wake()

    def _take_group(self, batch: list[AnyJob]) -> None:
        """Adds to a batch what waits in its first job's group, oldest first, as far as the bounds allow."""
        group, samples, size = batch[0].group, batch[0].samples, batch[0].size
        if group is None:
            return
        with self._lock:
            while group in self._groups:
                job = self._groups[group][0]
                samples, size = samples + job.samples, size + job.size
                if samples > self._max_samples or size > self._max_bytes:
                    break
                self._queues[job.lane].discard(job.caller.name, job)
                self._leave_group(job)
                batch.append(job)

    def _leave_group(self, job: AnyJob) -> None:
        if job.group is not None:
            group = self._groups[job.group]
            group.remove(job)
            if not group:
                del self._groups[job.group]

    def _compute_together(self, batch: Sequence[AnyJob], device: int) -> None:
        jobs = []
        for job in batch:
            if job.caller.is_active():
                jobs.append(job)
            else:
                job.finish(None, _caller_gone())
        if not jobs:
            return
        try:
            results = self._compute(device, jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].finish(None, error)
            else:  # it may be the fault of one of them, or of their number
                for job in jobs:
                    self._compute_together([job], device)
        else:
            for job, result in zip(jobs, results, strict=True):
                job.finish(result)


def _caller_gone() -> DeadlineExceededError:
    return DeadlineExceededError("Expected a caller that waits for the result. It is gone: not computed.")
