"""Forks of this process: gRPC outlives one if no call is under way, so that a fork waits for those that are."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType

from convserve.errors import FieldViolation, InvalidRequestError

LONGEST_WAIT_S = 10.0
"""How long a fork waits for calls that are under way in other threads."""


class _Calls:
    """The calls of this process that are under way: `with calls_under_way:` holds for a blocking one.

    gRPC prepares for a fork only if no thread is calling into it. If one is, calls in the fork may wait for ever, and
    may take from the connections of the process that forked (https://github.com/grpc/grpc/blob/master/doc/fork_support.md).

    Attributes:
        asyncio_clients: Those that are open, for as long as a thread of gRPC's waits for their calls.
    """

    def __init__(self) -> None:
        self.asyncio_clients: weakref.WeakSet[object] = weakref.WeakSet()
        self._cut = False
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._threads: set[int] = set()
        self._forking: int | None = None

    def __enter__(self) -> None:
        """Begins a call, after a fork if there is one just now."""
        me = threading.get_ident()
        with self._changed:
            while self._forking not in (None, me):
                self._changed.wait()
            self._threads.add(me)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        with self._changed:
            self._threads.discard(threading.get_ident())
            if self._forking is not None:
                self._changed.notify_all()

    def check_process(self) -> None:
        """Raises InvalidRequestError in a fork in which gRPC does not work."""
        if self._cut:
            text = (
                "Expected a process that was forked while no call was under way and no AsyncClient open, as gRPC works "
                'in no other: fork before that, or start processes with multiprocessing\'s "spawn" or "forkserver". '
                f"Received one that was forked beside an open AsyncClient, or a call that did not end in "
                f"{LONGEST_WAIT_S:g} s."
            )
            raise InvalidRequestError(FieldViolation("client", text))

    def before_fork(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._forking is not None:
                self._changed.wait()
            self._forking = me
            self._changed.wait_for(lambda: not self._threads - {me}, LONGEST_WAIT_S)

    def after_in_parent(self) -> None:
        with self._changed:
            self._forking = None
            self._changed.notify_all()

    def after_in_child(self) -> None:
        self._cut = self._cut or bool(self._threads - {threading.get_ident()} or len(self.asyncio_clients))
        self._begin()  # the lock may have been another thread's, which is not in this process


calls_under_way = _Calls()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=calls_under_way.before_fork,
        after_in_parent=calls_under_way.after_in_parent,
        after_in_child=calls_under_way.after_in_child,
    )
