"""Calls of a blocking client that another thread can end."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_thread = threading.local()


class Calls:
    """Calls, and the pauses between their attempts, that any thread can end all at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[Any] = set()
        self._ended = threading.Event()

    def take_this_thread(self) -> None:
        """Makes all further calls of this thread some of these."""
        _thread.calls = self

    @staticmethod
    def of_this_thread() -> Calls | None:
        """Returns those that took this thread; None in a caller's own thread."""
        return getattr(_thread, "calls", None)

    @contextmanager
    def under_way(self, call: Any) -> Iterator[None]:
        """Ends a call of gRPC's, if all are to be ended, as long as the block runs."""
        with self._lock:
            self._under_way.add(call)
        if self._ended.is_set():
            call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(call)

    def pause(self, seconds: float) -> None:
        """Waits so long.

        Raises:
            concurrent.futures.CancelledError: If all is ended, before or meanwhile.
        """
        if self._ended.wait(seconds):
            raise concurrent.futures.CancelledError

    def end(self) -> None:
        """Ends what is under way, and whatever begins after it."""
        self._ended.set()
        with self._lock:
            calls = list(self._under_way)
        for call in calls:
            call.cancel()
