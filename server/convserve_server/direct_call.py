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

from convserve_server.observability.call_record import CallRecord, Metadata

log = logging.getLogger("convserve")

_NO_FLAGS = 0
_TOLD_S = 0.2  # after which the core will have told that a caller is gone
_OK = grpc.StatusCode.OK.value[0]


class DirectCall:
    """One call with one request and one answer, which any thread may give.

    It is over when the core has told the end of all that was asked of it, of which the first is its arrival.

    Attributes:
        record: What is known of it.
        variables: The context variables of whoever handles its request; who answers it has a copy.
    """

    def __init__(self, arrived: Any, over: Callable[[DirectCall], None]) -> None:
        """Takes a call that has arrived.

        Args:
            arrived: The core's event.
            over: Is called once the call is over, after all that `add_callback` was given.
        """
        self.record: CallRecord | None = None
        self.variables = Context()
        self._call, self._metadata = arrived.call, arrived.invocation_metadata
        self._deadline: float = arrived.call_details.deadline
        self._over = over
        self._peer = ""
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []  # none any more once they are called
        self._is_over = False  # answered, or its caller is gone
        self._due = 2  # what the core has not told the end of; and the arrival, until `begun`
        self._start((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)

    def begun(self) -> None:
        """Ends its arrival: whatever happens to it from now on may end it."""
        self._done()

    def receive(self, then: Callable[[bytes | None], None]) -> None:
        """Has the request told to `then`, or None if there is none; nothing if the caller is gone."""

        def received(event: Any) -> None:
            data = event.batch_operations[0].message()
            del event
            if data is None:
                # So it is also where the caller is gone, of which another thread may be about to hear: that is awaited.
                threading.Timer(_TOLD_S, nothing).start()
                return
            self._done()  # before what may take long, so that it hears of a caller that leaves meanwhile
            if self.is_active():
                then(data)

        def nothing() -> None:
            self._done()
            if self.is_active():
                then(None)

        with self._lock:
            if self._is_over:
                return
            self._due += 1
        self._start((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)

    def answer(self, data: bytes) -> None:
        """Sends the answer, unless the caller is gone."""
        message = cygrpc.SendMessageOperation(data, _NO_FLAGS)
        status = cygrpc.SendStatusFromServerOperation(self._trailing, _OK, b"", _NO_FLAGS)
        self._end(None, message, status)

    def fail(self, status: grpc.Status) -> None:
        """Sends an error, unless the caller is gone."""
        trailing = (*self._trailing, *(status.trailing_metadata or ()))
        code, details = status.code.value[0], status.details.encode()
        self._end(status.code, cygrpc.SendStatusFromServerOperation(trailing, code, details, _NO_FLAGS))

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

    def _end(self, code: grpc.StatusCode | None, *operations: Any) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over, self._code = True, code
            self._due += 1
        self._start((cygrpc.SendInitialMetadataOperation((), _NO_FLAGS), *operations), self._sent)

    def _start(self, operations: tuple[Any, ...], then: Callable[[Any], None]) -> None:
        """Asks the core for something that is counted already. It tells the end to `then`, which is to call `_done`."""
        if self._call.start_server_batch(operations, then):
            log.error("gRPC's core refuses operations of a call: %s", operations)
            self._done()

    def _sent(self, _: Any) -> None:
        self._done()

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            with self._lock:
                self._is_over = True
        self._done()

    def _done(self) -> None:
        """Notes the end of something that the core was asked for."""
        with self._lock:
            self._due -= 1
            if self._due or not self._is_over or self._callbacks is None:
                return
            callbacks, self._callbacks = self._callbacks, None
        for each in callbacks:
            try:
                each()
            except Exception:  # the others are called all the same
                log.exception("what is to be done after a call failed")
        self._over(self)
