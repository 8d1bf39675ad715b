"""A pool of threads, of which the one that was busy last is the first to get work again.

Python's own pool gives work to the thread that has been idle longest, whose caches are cold, and each time wakes a
second one in vain: whoever takes work from its queue passes on the lock for which all idle threads wait. For small
calls that is a third of the server's switches between threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from convserve.errors import OverloadedError

_RETRY_S = 1.0


class ThreadPool(Executor):
    """Runs what is submitted; work waits while all threads are busy.

    It cannot be shut down: its threads end with the process, whatever they do.
    """

    def __init__(self, max_threads: int, name: str, *, waits_for_threads: bool = True) -> None:
        """Starts the first thread.

        Args:
            max_threads: How many threads there may be; one is started when work comes and no other is idle.
            name: What their names begin with.
            waits_for_threads: Whether work waits for a busy thread where the system starts no further one. It is not to
                if busy threads may wait for that work.

        Raises:
            RuntimeError: If the system starts no thread.
        """
        self._max_threads, self._name, self._waits_for_threads = max_threads, name, waits_for_threads
        self._lock = threading.Lock()
        self._waiting: deque[_Work] = deque()
        self._idle: list[_Worker] = []
        self._count = 1
        self._idle.append(_Worker(self._next, f"{name}_1"))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Returns the future of a call that a thread will make.

        Raises:
            OverloadedError: If it does not wait for threads, and the system starts no further one.
        """
        work = _Work(fn, args, kwargs)
        future = work.future
        with self._lock:
            worker = self._idle.pop() if self._idle else self._another()
            if worker is None:
                self._waiting.append(work)
                return future
        worker.wake(work)
        return future

    def _another(self) -> _Worker | None:
        """Starts a thread, if there may be one more and the system lets it start."""
        if self._count == self._max_threads:
            return None
        try:
            worker = _Worker(self._next, f"{self._name}_{self._count + 1}")
        except RuntimeError:
            if self._waits_for_threads:
                return None
            text = "Expected a thread. Received none, as the server's system starts no more of them: retry."
            raise OverloadedError(text, retry_after_s=_RETRY_S) from None
        self._count += 1
        return worker

    def _next(self, worker: _Worker) -> _Work | None:
        """Returns what waits for a thread that has become idle; if nothing does, the thread is woken when it comes."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._idle.append(worker)
            return None


class _Work:
    """A call to make, and its future."""

    __slots__ = ("_args", "_fn", "_kwargs", "future")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fn, self._args, self._kwargs = fn, args, kwargs
        self.future: Future[Any] = Future()

    def run(self) -> None:
        """Makes the call, unless its future was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._fn(*self._args, **self._kwargs)
        except BaseException as error:
            self.future.set_exception(error)
            # The future has the error, in whose traceback this frame is: it would keep the tensors until Python looks
            # for what keeps itself.
            del self
        else:
            self.future.set_result(result)


class _Worker:
    """A thread."""

    def __init__(self, following: Callable[[_Worker], _Work | None], name: str) -> None:
        self._following = following
        self._work: _Work | None = None
        self._asleep = threading.Lock()
        self._asleep.acquire()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wake(self, work: _Work) -> None:
        """Gives work to a thread that is idle."""
        self._work = work
        self._asleep.release()

    def _run(self) -> None:
        while True:
            self._asleep.acquire()
            work, self._work = self._work, None
            while work is not None:
                work.run()
                del work  # before the wait for the next: in it are tensors
                work = self._following(self)
