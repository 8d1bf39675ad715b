"""grpc.health.v1, with watches that can be ended.

`Watch` takes a `send_response_callback` only by an experimental interface of grpcio and grpcio-health-checking, which
keeps watches from taking a thread each. It is used here alone; tests/unit/server/test_health.py fails when it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

SERVICE_NAME: str = health.SERVICE_NAME


class Health(health.HealthServicer):  # type: ignore[misc, unused-ignore]
    """grpc.health.v1, whose watches can be ended: an open one would hold up the server's stop."""

    def __init__(self, services: Sequence[str]) -> None:
        """Starts with NOT_SERVING for these services, and for the server, which has no name."""
        super().__init__(experimental_non_blocking=True)
        self._names, self._watches, self.is_serving = ["", *services], set[Any](), False
        for name in self._names:
            self.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    def set_serving(self) -> None:
        """Tells everybody that the server is ready."""
        self.is_serving = True
        for name in self._names:
            self.set(name, health_pb2.HealthCheckResponse.SERVING)

    def enter_graceful_shutdown(self) -> None:
        """Tells everybody that the server is about to stop, though it still answers calls."""
        self.is_serving = False
        super().enter_graceful_shutdown()

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:  # noqa: N802
        """Answers with every change of the health."""
        self._watches.add(send_response_callback)
        context.add_callback(lambda: self._watches.discard(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    @property
    def is_watched(self) -> bool:
        """Whether somebody would be told of a change now."""
        return bool(self._watches)

    def end_watches(self) -> None:
        """Ends the watches that are open."""
        for send_response in tuple(self._watches):
            send_response(None)
