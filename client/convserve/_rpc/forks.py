"""Forks of this process: gRPC outlives one if no call is under way, so that a fork waits for those that are."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 (hooks run last come, first served: its lock is taken after our wait)
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from convserve.errors import InvalidRequestError

MAX_WAIT_S = 10.0
"""How long a fork waits for calls that are under way in other threads."""


class CallsUnderWay:
    """The calls of this process, and the forks between them.

    gRPC prepares for a fork only if no thread is calling into it. If one is, calls in the fork may wait for ever, and
    may take from the connections of the process that forked (https://github.com/grpc/grpc/blob/master/doc/fork_support.md).

    Attributes:
        asyncio_clients: Those that are connected, for as long as a thread of gRPC's waits for their calls.
        setup: Held while a channel is opened; a fork waits for it, and begins with another one.
    """

    def __init__(self) -> None:
        self.asyncio_clients: weakref.WeakSet[object] = weakref.WeakSet()
        self._cut = False
        self._start()

    def _start(self) -> None:
        # A call takes no lock unless there is a fork: it notes itself, and then looks; a fork does it the other way.
        self._threads: dict[object, int] = {}  # by call
        self._forking: int | None = None  # the thread
        self._changed = threading.Condition()
        self.setup = threading.Lock()
        self._holds_setup = False

    @contextmanager
    def call(self, timeout: float) -> Iterator[None]:
        """Notes a call; if another thread forks just now, the block begins after that, or after so many seconds."""
        call, me = object(), threading.get_ident()
        self._threads[call] = me
        if self._forking not in (None, me):
            del self._threads[call]
            with self._changed:
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._forking in (None, me), timeout)
            self._threads[call] = me
        try:
            yield
        finally:
            self._threads.pop(call, None)
            if self._forking is not None:
                with self._changed:
                    self._changed.notify_all()

    def check_process(self) -> None:
        """Raises InvalidRequestError in a fork in which gRPC does not work."""
        if self._cut:
            expected = (
                "a process that was forked while no call was under way and no AsyncClient connected, as gRPC works in "
                'no other: fork before that, or start processes with multiprocessing\'s "spawn" or "forkserver"'
            )
            forked = (
                f"one that was forked beside a connected AsyncClient, or a call that did not end in {MAX_WAIT_S:g} s"
            )
            raise InvalidRequestError.for_field("client", expected, forked)

    def before_fork(self) -> None:
        """Waits until no other thread forks or calls, and lets none begin."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._forking in (None, me), MAX_WAIT_S)
            self._forking = me
            self._changed.wait_for(lambda: set(self._threads.copy().values()) <= {me}, MAX_WAIT_S)
        self._holds_setup = self.setup.acquire(timeout=MAX_WAIT_S)

    def after_in_parent(self) -> None:
        """Lets calls begin."""
        with self._changed:
            if self._forking == threading.get_ident():
                if self._holds_setup:
                    self.setup.release()
                self._forking = None
                self._changed.notify_all()

    def after_in_child(self) -> None:
        """Starts anew, and keeps in mind whether gRPC works here."""
        self._cut = self._cut or bool(self._threads) or len(self.asyncio_clients) > 0
        self._start()  # what other threads held, nobody would release


calls_under_way = CallsUnderWay()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=calls_under_way.before_fork,
        after_in_parent=calls_under_way.after_in_parent,
        after_in_child=calls_under_way.after_in_child,
    )
