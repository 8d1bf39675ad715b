"""Callers that stop in the middle of what they send: their calls are ended, so that none keeps a thread for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger("convserve")


class SilenceWatch:
    """Ends calls of which nothing has come for some time though more is waited for."""

    def __init__(self, limit_s: float) -> None:
        """Starts to watch.

        Args:
            limit_s: Seconds that may pass between two messages of a call.
        """
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._waiting: dict[object, tuple[float, Callable[[], object]]] = {}
        threading.Thread(target=self._watch, name="silence", daemon=True).start()

    @contextmanager
    def waiting(self, end: Callable[[], object]) -> Iterator[None]:
        """Calls `end`, from another thread, if the block, which waits for a caller, takes too long."""
        forget = self.begin(end)
        try:
            yield
        finally:
            forget()

    def begin(self, end: Callable[[], object], times: int = 1) -> Callable[[], None]:
        """Begins a wait, which may take so many times as long as others; returns what ends it."""
        wait = object()
        with self._lock:
            self._waiting[wait] = time.monotonic() + times * self.limit_s, end
        return lambda: self._forget(wait)

    def _forget(self, wait: object) -> None:
        with self._lock:
            self._waiting.pop(wait, None)

    def watched(self, requests: Iterator[T], end: Callable[[], object]) -> Iterator[T]:
        """Yields a call's messages, none of which may take too long.

        Args:
            requests: The messages, of which waiting for one raises once the call is ended.
            end: Ends the call. It is called by another thread.
        """
        while True:
            with self.waiting(end):
                request = next(requests, None)
            if request is None:
                return
            yield request
            del request  # before the wait for the next one

    def _watch(self) -> None:
        while True:
            time.sleep(self.limit_s / 4)
            now = time.monotonic()
            with self._lock:
                silent = [end for until, end in self._waiting.values() if until < now]
            for end in silent:
                try:
                    end()
                except Exception:  # the other calls' watch goes on
                    log.exception("a call that is silent cannot be ended")
