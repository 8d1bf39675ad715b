"""grpc.health.v1, with watches that can be ended, and none of which can hold up another call.

`Watch` takes a `send_response_callback` only by an experimental interface of grpcio and grpcio-health-checking, which
keeps watches from taking a thread each. It is used here alone; tests/unit/server/test_health.py fails when it changes.
grpcio-health-checking's own servicer holds a lock while an answer is sent, and gRPC's one thread waits for that lock
when a watch ends, while the answer waits for that thread: so the whole server stood still.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVICE_NAME: str = health.SERVICE_NAME
_STATUSES = health_pb2.HealthCheckResponse

_TELLERS = 8  # threads that tell of a change: a caller that fetches nothing keeps one waiting


class _Watch:
    """One that is open. Whoever tells it tells it what is so by then, so that the last it is told is right."""

    def __init__(self, status: Callable[[], Any], send_response: Callable[[Any], None]) -> None:
        self._status, self.send_response = status, send_response
        self._lock, self._told = threading.Lock(), -1

    def tell(self) -> None:
        """Sends the status, if it is another one; returns when that has gone out."""
        with self._lock:
            status = self._status()
            if status != self._told:
                self._told = status
                self.send_response(_STATUSES(status=status))


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc, unused-ignore]
    """grpc.health.v1, whose watches can be ended: an open one would hold up the server's stop."""

    def __init__(self, services: Sequence[str]) -> None:
        """Starts with NOT_SERVING for these services, and for the server, which has no name."""
        self._names, self._watches, self.is_serving = frozenset(("", *services)), set[_Watch](), False

    def set_serving(self, is_serving: bool) -> None:
        """Tells everybody whether the server is ready; before it stops it is not, though it still answers calls."""
        self.is_serving = is_serving
        self._tell()

    def _status(self, service: str) -> Any:
        if service not in self._names:
            return _STATUSES.SERVICE_UNKNOWN
        return _STATUSES.SERVING if self.is_serving else _STATUSES.NOT_SERVING

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Answers with the health as it is."""
        if request.service not in self._names:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return _STATUSES()
        return _STATUSES(status=self._status(request.service))

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:  # noqa: N802
        """Answers with every change of the health."""
        watch = _Watch(partial(self._status, request.service), send_response_callback)
        self._watches.add(watch)
        if not context.add_callback(lambda: self._watches.discard(watch)):  # it is over already
            self._watches.discard(watch)
        watch.tell()

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    @property
    def is_watched(self) -> bool:
        """Whether somebody would be told of a change now."""
        return bool(self._watches)

    def end_watches(self) -> None:
        """Ends the watches that are open."""
        for watch in tuple(self._watches):
            watch.send_response(None)

    def _tell(self) -> None:
        """Tells all watches, and does not wait for those that fetch nothing."""
        waiting: SimpleQueue[_Watch] = SimpleQueue()
        for watch in tuple(self._watches):
            waiting.put(watch)

        def tell() -> None:
            with suppress(Empty):
                while True:
                    waiting.get_nowait().tell()

        for _ in range(min(_TELLERS, waiting.qsize())):
            with suppress(RuntimeError):  # the system starts no thread
                threading.Thread(target=tell, name="health", daemon=True).start()
