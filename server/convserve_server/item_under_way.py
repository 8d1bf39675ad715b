"""An item of a stream, whose caller waits for its answer and not for the stream's end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from convserve_server.caller import Caller


class ItemUnderWay:
    """An item under way: until it is answered, or its stream ends, its caller waits."""

    def __init__(self, stream: Caller) -> None:
        """Begins an item of a stream's caller."""
        self._stream = stream
        self._lock = threading.Lock()
        self._gone = False
        self._calls: list[Callable[[], None]] = []

    def caller(self) -> Caller:
        """Returns the item's caller. It refers to the item, so the item does not keep it."""
        return replace(self._stream, is_waiting=self._is_waiting, when_gone=self._when_gone)

    def _is_waiting(self) -> bool:
        return not self._gone and self._stream.is_waiting()

    def _when_gone(self, call: Callable[[], None]) -> bool:
        with self._lock:
            if not self._gone:
                self._calls.append(call)
            return not self._gone

    def leave(self) -> None:
        """Notes that it is answered, or that nobody waits for it any more."""
        with self._lock:
            self._gone = True
            calls, self._calls = self._calls, []
        for call in calls:
            call()
