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
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from convserve.errors import OverloadedError

_RETRY_S = 1.0

_thread = threading.local()

_Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]
_Inbox = SimpleQueue[_Work]
"""What one thread is to do; the thread is known by it."""


class ThreadPool(Executor):
    """Runs what is submitted; work waits while all threads are busy.

    It cannot be shut down: its threads end with the process, whatever they do.
    """

    def __init__(self, max_threads: int, name: str, *, min_threads: int = 1, refuses_in_thread: bool = False) -> None:
        """Starts `min_threads`, one at least or raises RuntimeError; others when work comes and none is idle.

        Where the system starts no further thread, `submit` refuses work. Or a thread that does no other work has it
        refused by calling it (`refuses_in_thread`), for those who submit and cannot be told.
        """
        self._max_threads, self._name = max_threads, name
        self._lock = threading.Lock()
        self._waiting: deque[_Work] = deque()
        self._count = 0
        self._refusing: _Inbox | None = self._started(self._refuse, "refusing") if refuses_in_thread else None
        self._idle = [self._started_thread()]
        with suppress(RuntimeError):
            while self._count < min(max_threads, min_threads):
                self._idle.append(self._started_thread())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Returns the future of a call. Raises OverloadedError if the system starts no thread for it."""
        work: _Work = Future(), fn, args, kwargs
        with self._lock:
            inbox = self._idle.pop() if self._idle else self._another()
            if inbox is None:
                self._waiting.append(work)
            else:
                inbox.put(work)
        return work[0]

    def _another(self) -> _Inbox | None:
        """Starts a thread, if there may be one more."""
        if self._count == self._max_threads:
            return None
        try:
            return self._started_thread()
        except (RuntimeError, MemoryError):
            if self._refusing is None:
                raise _no_thread() from None
            return self._refusing

    def _started_thread(self) -> _Inbox:
        inbox = self._started(self._work, str(self._count + 1))
        self._count += 1
        return inbox

    def _started(self, work: Callable[[_Inbox], None], name: str) -> _Inbox:
        inbox: _Inbox = SimpleQueue()
        threading.Thread(target=work, args=(inbox,), name=f"{self._name}_{name}", daemon=True).start()
        return inbox

    def _refuse(self, inbox: _Inbox) -> None:
        _thread.refuses = True
        while True:
            _run(*inbox.get())

    def _work(self, inbox: _Inbox) -> None:
        while True:
            _run(*inbox.get())
            with self._lock:
                if self._waiting:
                    inbox.put(self._waiting.popleft())
                else:
                    self._idle.append(inbox)


def check_thread() -> None:
    """Raises OverloadedError in a thread that only refuses: what is called there must not wait for anything."""
    if getattr(_thread, "refuses", False):
        raise _no_thread()


def _no_thread() -> OverloadedError:
    text = "Expected a thread. Received none, as the server's system starts no more of them: retry."
    return OverloadedError(text, retry_after_s=_RETRY_S)


def _run(future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Makes a call, unless its future was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
        # The error's traceback has this frame: with these they would keep each other, and the tensors among them.
        del future, fn, args, kwargs
    else:
        future.set_result(result)
