"""An engine that computes only while it is let go."""

from __future__ import annotations

import threading
from typing import Any

from convserve_server.engine_api import Computed


class HeldEngine:
    """Counts the calls of another engine, and holds them up while `go` is not set."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.calls, self.go = 0, threading.Event()
        self.go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def convolve(self, *arguments: Any) -> Computed:
        self.calls += 1
        assert self.go.wait(60)
        return self._engine.convolve(*arguments)
