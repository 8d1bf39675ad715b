"""A call on gRPC's core, with those methods of grpc.ServicerContext that the services use."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from convserve_server.call_record import CallRecord, Metadata

log = logging.getLogger("convserve")

_NO_FLAGS = 0
_OK = grpc.StatusCode.OK.value[0]


class DirectCall:
    """One call with one request and one answer, which any thread may give.

    Attributes:
        record: What is known of it.
        variables: The context variables of the thread that handles its request.
    """

    def __init__(self, arrived: Any) -> None:
        """Takes a call that has arrived.

        Args:
            arrived: The core's event.
        """
        self.record: CallRecord | None = None
        self.variables = Context()
        self._call, self._metadata = arrived.call, arrived.invocation_metadata
        self._deadline: float = arrived.call_details.deadline
        self._peer = ""
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []  # none any more once they are called
        self._is_over = False  # answered, or its caller is gone
        self._due = 1  # operations that the core has not told the end of
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    def receive(self, then: Callable[[bytes | None], None]) -> None:
        """Has the request told to `then`, or None if there is none."""

        def received(event: Any) -> None:
            data = event.batch_operations[0].message()
            del event
            self._done()
            then(data)

        with self._lock:
            self._due += 1
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)

    def answer(self, data: bytes) -> None:
        """Sends the answer, unless the caller is gone."""
        self._end(cygrpc.SendMessageOperation(data, _NO_FLAGS), code=_OK, details="")

    def fail(self, status: grpc.Status) -> None:
        """Sends an error, unless the caller is gone."""
        self._code = status.code
        self._trailing = (*self._trailing, *(status.trailing_metadata or ()))
        self._end(code=status.code.value[0], details=status.details)

    def peer(self) -> str:
        """Returns where the caller is, as gRPC names it."""
        self._peer = self._peer or self._call.peer().decode()
        return self._peer

    def invocation_metadata(self) -> Metadata:
        """Returns what came beside the request."""
        return self._metadata  # type: ignore[no-any-return]

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Returns what the connection says of who the caller is."""
        found = cygrpc.auth_context(self._call) or {}
        return {key.decode(): value for key, value in found.items()}

    def is_active(self) -> bool:
        """Returns whether the caller waits for the answer."""
        return not self._is_over

    def time_remaining(self) -> float:
        """Returns the seconds until the deadline."""
        return max(self._deadline - time.time(), 0.0)

    def cancel(self) -> None:
        """Ends the call."""
        self._call.cancel()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has a function called once the call is over. Returns False if it is."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Sets what goes with the answer."""
        self._trailing = metadata

    def code(self) -> grpc.StatusCode | None:
        """Returns the code of the error that it was answered with."""
        return self._code

    def _end(self, *message: Any, code: int, details: str) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self._due += 1
        operations = (
            cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
            *message,
            cygrpc.SendStatusFromServerOperation(self._trailing, code, details.encode(), _NO_FLAGS),
        )
        self._call.start_server_batch(operations, self._sent)

    def _sent(self, _: Any) -> None:
        self._done()

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._is_over = True
        self._done()

    def _done(self) -> None:
        """Notes the end of one of the core's operations."""
        callbacks: list[Callable[[], None]] = []
        with self._lock:
            self._due -= 1
            if self._is_over and not self._due:
                callbacks, self._callbacks = self._callbacks or [], None
        for each in callbacks:
            try:
                each()
            except Exception:  # the others are called all the same
                log.exception("what is to be done after a call failed")
