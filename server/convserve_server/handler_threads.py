"""The threads that handle calls. The one that was busy last is the first to get work again.

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

Work = Callable[[], None]


class HandlerThreads(Executor):
    """Runs what is submitted; what all threads are too busy for waits. They end with the process, whatever they do."""

    def __init__(self, most: int, name: str) -> None:
        """Starts with no thread.

        Args:
            most: How many threads there may be; each is started when work comes and no other is idle.
            name: What their names begin with.
        """
        self._most, self._name = most, name
        self._lock = threading.Lock()
        self._count = 0
        self._idle: list[_Worker] = []
        self._waiting: deque[Work] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Returns the future of a call that a thread will make."""
        future: Future[Any] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        with self._lock:
            if self._idle:
                worker = self._idle.pop()
            elif self._count < self._most:
                self._count += 1
                worker = _Worker(self._next, f"{self._name}_{self._count}")
            else:
                self._waiting.append(work)
                return future
        worker.wake(work)
        return future

    def _next(self, worker: _Worker) -> Work | None:
        """Returns what waits for a thread that has become idle; if nothing does, the thread is woken when it comes."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._idle.append(worker)
            return None


class _Worker:
    """A thread."""

    def __init__(self, following: Callable[[_Worker], Work | None], name: str) -> None:
        self._following = following
        self._work: Work | None = None
        self._asleep = threading.Lock()
        self._asleep.acquire()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wake(self, work: Work) -> None:
        """Gives work to a thread that is idle."""
        self._work = work
        self._asleep.release()

    def _run(self) -> None:
        while True:
            self._asleep.acquire()
            work, self._work = self._work, None
            while work is not None:
                work()
                del work  # before the wait for the next: in it are tensors
                work = self._following(self)
