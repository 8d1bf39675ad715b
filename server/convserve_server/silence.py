"""Callers that stop in the middle of what they send: their calls are ended, so that none keeps a thread for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class SilenceWatch:
    """Ends calls of which nothing has come for some time though more is waited for."""

    def __init__(self, limit_s: float) -> None:
        """Starts to watch.

        Args:
            limit_s: Seconds that may pass between two messages of a call.
        """
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._waiting: dict[object, tuple[float, Callable[[], object]]] = {}
        threading.Thread(target=self._watch, name="silence", daemon=True).start()

    def watched(self, requests: Iterator[T], end: Callable[[], object]) -> Iterator[T]:
        """Yields a call's messages.

        Args:
            requests: The messages, of which waiting for one raises once the call is ended.
            end: Ends the call. It is called by another thread.
        """
        call = object()
        while True:
            with self._lock:
                self._waiting[call] = time.monotonic(), end
            try:
                request = next(requests)
            except StopIteration:
                return
            finally:
                with self._lock:
                    del self._waiting[call]
            yield request

    def _watch(self) -> None:
        while True:
            time.sleep(self._limit_s / 4)
            oldest = time.monotonic() - self._limit_s
            with self._lock:
                silent = [end for since, end in self._waiting.values() if since < oldest]
            for end in silent:
                end()
