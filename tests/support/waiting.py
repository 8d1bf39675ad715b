"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Returns what a condition returns as soon as that is true; fails if it never is."""
    deadline, pause = time.monotonic() + seconds, 0.0002
    while not (found := condition()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    return found


def waiting_jobs(batcher: Any) -> int:
    """Returns how many jobs of a server's batcher wait for a device."""
    return sum(map(len, batcher._queues))
