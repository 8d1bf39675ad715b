"""Callers that stop in the middle of what they send: their calls are ended, so that none keeps a thread for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger("convserve")


class Wait:
    """A wait for a caller, which ends with `forget`, or with the block whose context it is."""

    __slots__ = ("_waiting", "end", "until")

    def __init__(self, waiting: set[Wait], until: float, end: Callable[[], object]) -> None:
        self._waiting, self.until, self.end = waiting, until, end
        waiting.add(self)

    def forget(self) -> None:
        """Ends it."""
        self._waiting.discard(self)

    def __enter__(self) -> None:
        """Does nothing; it has begun."""

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._waiting.discard(self)


class IdleTimeouts:
    """Ends calls of which nothing has come for some time though more is waited for."""

    def __init__(self, limit_s: float) -> None:
        """Starts to watch.

        Args:
            limit_s: Seconds that may pass between two messages of a call.
        """
        self.limit_s = limit_s
        self._waiting: set[Wait] = set()  # one step of Python's adds, removes and copies, so it needs no lock
        threading.Thread(target=self._watch, name="silence", daemon=True).start()

    def waiting(self, end: Callable[[], object], times: int = 1) -> Wait:
        """Begins a wait, and calls `end`, from another thread, if it takes too long.

        Args:
            end: Ends the call that is waited for.
            times: How many times as long as others it may take.
        """
        return Wait(self._waiting, time.monotonic() + times * self.limit_s, end)

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
            self._end_silent()

    def _end_silent(self) -> None:
        now = time.monotonic()
        for each in self._waiting.copy():
            if each.until >= now:
                continue
            try:
                each.end()
            except Exception:  # the other calls' watch goes on
                log.exception("a call that is silent cannot be ended")
