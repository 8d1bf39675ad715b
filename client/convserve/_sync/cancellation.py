"""Calls of a blocking client that another thread can end."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Calls:
    """Calls, and the pauses between their attempts, that can be ended all at once, by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[Any] = set()
        self._ended = threading.Event()

    def answer(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        """Makes a call of one message each way, and returns its answer.

        Raises:
            grpc.RpcError: If it fails.
            grpc.FutureCancelledError: If it was ended.
        """
        call = method.future(request, timeout=timeout)  # type: ignore[attr-defined]
        with self.under_way(call):
            return call.result()

    @contextmanager
    def under_way(self, call: Any) -> Iterator[None]:
        """Ends a call of gRPC's, if all are to be ended, as long as the block runs."""
        with self._lock:
            self._under_way.add(call)
        if self._ended.is_set():
            call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(call)

    def pause(self, seconds: float) -> None:
        """Waits so long.

        Raises:
            concurrent.futures.CancelledError: If all is ended, before or meanwhile.
        """
        if self._ended.wait(seconds):
            raise concurrent.futures.CancelledError

    def end(self) -> None:
        """Ends what is under way, and whatever begins after it."""
        self._ended.set()
        with self._lock:
            calls = list(self._under_way)
        for each in calls:
            each.cancel()
