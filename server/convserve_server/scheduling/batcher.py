"""Decides what is computed next, and what together; in whose turn, fair_queue.py.

Dynamic batching without a timer: jobs gather while all devices are busy, and go together when one is free.

A job that finds a device free is computed at once, in its caller's own thread. Otherwise that thread waits. A thread
that has computed passes its device to the next job (callers take turns, each one's jobs come in their order), whose
thread computes it together with the waiting jobs of its group:

    job -> device free? --yes--> compute ----> release the device -> result
                |                   ^                   |
                no                  | with its          | next in the queue
                v                   | group             v
              queue ----------------+-------------------+
                |
                +--> computed as a member of another job's batch --> result

Jobs that are too large for a batch have a queue and a share of each device of their own, so that small ones never wait
for them. A device computes some of them at once, and one batch of small ones, which gather meanwhile.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from convserve.errors import DeadlineExceededError
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.fair_queue import FairQueue

_SMALL, _LARGE = range(2)  # lanes: jobs that fit a batch, and those that are too large for one


@dataclass(frozen=True)
class Batching:
    """How jobs share the devices; the fields are named as the settings."""

    concurrent_calls: int  # jobs larger than `max_batch_bytes` that a device computes at once; one batch of others
    max_batch_samples: int  # of a batch of several jobs
    max_batch_bytes: int  # of a batch of several jobs: inputs, outputs and what is between


@dataclass(eq=False, slots=True, weakref_slot=True)
class Job:
    """What one caller wants computed. The batcher sets all but the first four attributes."""

    group: Hashable | None  # what jobs that may be computed together have in common; None for one alone
    samples: int
    size: int  # bytes that it takes while it is computed
    caller: Caller
    lane: int = _SMALL
    ready: threading.Lock = field(default_factory=threading.Lock)  # held while it waits for a device or an outcome
    device: int | None = None  # which its thread holds; None while it has none, and for a member of another's batch
    is_done: bool = False  # whether result or error is set
    result: Any = None
    error: BaseException | None = None

    def finish(self, result: Any, error: BaseException | None = None) -> None:
        """Sets the outcome."""
        self.result, self.error, self.is_done = result, error, True


AnyJob = TypeVar("AnyJob", bound=Job)


class Batcher(Generic[AnyJob]):
    """Computes jobs in the threads that bring them, together where they may be. Any thread may call its methods."""

    def __init__(
        self, compute: Callable[[int, Sequence[AnyJob]], Sequence[Any]], devices: int, batching: Batching
    ) -> None:
        """Starts with no job; `compute` computes jobs of one group on a device, and returns one result per job."""
        self._compute = compute
        self._max_samples, self._max_bytes = batching.max_batch_samples, batching.max_batch_bytes
        self._lock = threading.Lock()
        # By lane: how many more computations each device may have, and the jobs that wait.
        self._free = [1] * devices, [batching.concurrent_calls] * devices
        self._queues: tuple[FairQueue[AnyJob], ...] = (FairQueue(), FairQueue())
        self._groups: dict[Hashable, deque[AnyJob]] = {}  # the same jobs by group, in the order of their arrival

    def run(self, job: AnyJob) -> Any:
        """Returns a job's result once it is computed, or raises what `compute` raises for this job alone.

        Whatever is raised meanwhile, the device is released and every job of the batch gets an outcome. Raises
        DeadlineExceededError if the caller was gone before the job was computed.
        """
        self._take_device_or_queue(job)
        if job.device is None:
            self._wait(job)
        if job.device is not None:
            self._run_batch(job, job.device)
        if job.error is None:
            return job.result
        try:
            raise job.error
        finally:
            job.error = None  # its traceback has the job: they would keep each other alive

    def _take_device_or_queue(self, job: AnyJob) -> None:
        if job.size > self._max_bytes:
            job.lane, job.group = _LARGE, None
        free, others = self._free[job.lane], self._free[1 - job.lane]
        with self._lock:
            device = max(range(len(free)), key=lambda number: (free[number] > 0, free[number] + others[number]))
            if free[device]:  # it is the one with the least to do
                free[device] -= 1
                job.device = device
                return
            if job.group is not None:  # first, as a group that cannot be hashed raises
                self._groups.setdefault(job.group, deque()).append(job)
            job.ready.acquire()
            self._queues[job.lane].append(job.caller.name, job)

    def _wait(self, job: AnyJob) -> None:
        """Waits until a job in the queue has a device or an outcome."""
        waiting = weakref.ref(job)  # the callback may be kept for as long as the answer is on its way
        try:
            if not job.caller.add_done_callback(lambda: self._abandon(waiting())) and not job.caller.is_active():
                self._abandon(job)
            job.ready.acquire()
        except BaseException:
            self._abandon(job)
            if job.device is not None:
                self._release_device(job.device, job.lane)
            raise

    def _abandon(self, job: AnyJob | None) -> None:
        """Takes a job whose caller is gone out of the queue, if it is there."""
        with self._lock:
            if job is None or not self._queues[job.lane].discard(job.caller.name, job):
                return
            self._remove_from_group(job)
        job.finish(None, _caller_gone())
        job.ready.release()

    def _run_batch(self, job: AnyJob, device: int) -> None:
        """Computes a job and those of its group that wait, and releases its device."""
        batch = [job]
        try:
            if job.group is not None:
                self._take_group(batch, job.group)
            self._compute_batch(batch, device)
        except BaseException as error:
            for member in batch:
                if not member.is_done:
                    member.error, member.is_done = error, True
        finally:
            self._release_device(device, job.lane)
            for member in batch[1:]:
                member.ready.release()

    def _take_group(self, batch: list[AnyJob], group: Hashable) -> None:
        """Adds a group's waiting jobs to a batch of one, oldest first, as far as the bounds allow."""
        samples, size = batch[0].samples, batch[0].size
        with self._lock:
            for job in tuple(self._groups.get(group, ())):
                samples, size = samples + job.samples, size + job.size
                if samples > self._max_samples or size > self._max_bytes:
                    break
                batch.append(job)
                self._queues[job.lane].discard(job.caller.name, job)
                self._remove_from_group(job)

    def _compute_batch(self, batch: Sequence[AnyJob], device: int) -> None:
        """Computes jobs, and each of them alone if they fail together."""
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
                    self._compute_batch([job], device)
        else:
            for job, result in zip(jobs, results, strict=True):
                job.finish(result)

    def _release_device(self, device: int, lane: int) -> None:
        """Passes a device to the next job of a lane, or sets it free."""
        with self._lock:
            job = self._queues[lane].pop()
            if job is None:
                self._free[lane][device] += 1
                return
            self._remove_from_group(job)
            job.device = device
        job.ready.release()

    def _remove_from_group(self, job: AnyJob) -> None:
        if job.group is not None:
            group = self._groups[job.group]
            group.remove(job)
            if not group:
                del self._groups[job.group]


def _caller_gone() -> DeadlineExceededError:
    return DeadlineExceededError("Expected a caller that waits for the result. It is gone: not computed.")
