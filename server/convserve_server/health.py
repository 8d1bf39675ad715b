"""grpc.health.v1, with watches that can be ended."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health


class Health(health.HealthServicer):  # type: ignore[misc, unused-ignore]
    """grpc.health.v1, whose watches can be ended: one that is open would hold up the server's stop."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[Any] = set()

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:  # noqa: N802
        """Answers with every change of the health."""
        self._watches.add(send_response_callback)
        context.add_callback(lambda: self._watches.discard(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    def end_watches(self) -> None:
        """Ends the watches that are open."""
        for answer in tuple(self._watches):
            answer(None)
