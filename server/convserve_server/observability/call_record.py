"""What is known of a call: a record that the interceptor begins, the services fill, and observers read."""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc

from convserve.errors import ConvserveError, InternalError, PermissionDeniedError
from convserve.v1 import error_pb2
from convserve_server.auth.identity import Identity
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.scheduler import Computation

REQUEST_ID = "x-request-id"
"""The metadata's key of a request's id, on its way in and back."""
UNKNOWN_METHOD = "unknown"
"""What a method is called that this server does not have; its own name could be anything."""
REASONS = {number: name.removeprefix("ERROR_REASON_") for name, number in error_pb2.ErrorReason.items() if number}
"""The names of the reasons for which a call is refused."""

log = logging.getLogger("convserve")

Metadata = Sequence[tuple[str, str | bytes]]

# No spaces, so that an id is one word in a line of text; bounded, because it goes back and into every log.
_SANE_ID = re.compile(r"[!-~]{1,128}")
# Random for each process and numbered within it, since random ids for each call would cost more.
_PROCESS_ID, _NUMBERS = uuid.uuid4().hex[:16], itertools.count(1)
_MAX_PATH = 200  # characters of a method's name that is none of ours


class Observer:
    """Is notified of calls. The methods are to be quick; any thread may call them.

    What they raise is logged, and harms neither the call nor other observers.
    """

    def began(self, call: CallRecord) -> None:
        """A thread has taken a call."""

    def computed(self, call: CallRecord, computation: Computation) -> None:
        """A forward pass is done."""

    def refused(self, call: CallRecord, reason: str) -> None:
        """A call, or an item of a stream, is answered with an error."""

    def ended(self, call: CallRecord) -> None:
        """A call is over for both ends; the record is complete."""


@dataclass(eq=False)
class CallRecord:
    """A call that arrives now."""

    method: str  # "package.Service/Method", or UNKNOWN_METHOD: a name out of a bounded number
    method_label: str  # the same, but an unknown one as the caller named it
    metadata: Metadata = ()  # what the caller sent beside the request; it may have secrets
    observers: Sequence[Observer] = ()
    trace_id: str = ""  # in hexadecimal, where the call is traced
    identity: Identity | None = None  # who called; None until it is authenticated
    arrived_ns: int = field(default_factory=time.time_ns)
    duration_us: int = 0  # until the last byte was sent
    code: str = ""  # the status code's name; empty while the call is under way
    reason: str = ""  # why it failed, a name of ErrorReason
    error_id: str = ""  # under which the log has a defect
    first: Computation | None = None  # the first forward pass
    items: int = 0  # how many forward passes there were
    items_refused: int = 0  # of a stream
    queue_us: int = 0  # of all forward passes together
    compute_us: int = 0  # of all forward passes together
    batch_size: int = 0  # the largest
    received_bytes: int = 0  # of messages
    sent_bytes: int = 0  # of messages
    answered: bool = False  # whether the method has returned its whole answer
    _began_ns: int = field(default_factory=time.monotonic_ns)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # several threads compute items of a stream

    def __post_init__(self) -> None:
        """Takes the caller's id for the request, or makes one."""
        self.request_id = _request_id(self.metadata)

    @property
    def caller(self) -> str:
        """Who called, in one word."""
        return self.identity.caller if self.identity else ""

    def begin(self) -> None:
        """Notes that a thread has taken the call."""
        self._notify("began")

    def computed(self, computation: Computation) -> None:
        """Adds a forward pass."""
        with self._lock:
            self.first = self.first or computation
            self.items += 1
            self.queue_us += computation.queue_us
            self.compute_us += computation.compute_us
            self.batch_size = max(self.batch_size, computation.batch_size)
        self._notify("computed", computation)

    def refused(self, error: ConvserveError, *, item: bool = False) -> None:
        """Notes what the call fails with, or an item of a stream, which goes on."""
        reason = REASONS.get(error.reason, "")
        if item:
            with self._lock:
                self.items_refused += 1
        else:
            self.reason = reason
        if isinstance(error, InternalError):
            self.error_id = error.error_id
        if reason:
            self._notify("refused", reason)

    def end(self, code: str) -> None:
        """Completes the record."""
        self.code = code
        self.duration_us = (time.monotonic_ns() - self._began_ns) // 1000
        self._notify("ended")

    def _notify(self, event: str, *details: Any) -> None:
        for observer in self.observers:
            try:
                getattr(observer, event)(self, *details)
            except Exception:
                log.exception("%s failed at a call of %s", type(observer).__name__, self.method_label)


class CallRecorder:
    """Begins the record of each call.

    A call counts from the moment that a thread takes it; one that its caller gives up before is not counted. Watches of
    the health, which last as long as their connection and keep no thread, are not recorded.
    """

    def __init__(self, methods: Iterable[str] = (), observers: Sequence[Observer] = ()) -> None:
        """Prepares to record calls of methods with these paths; calls of others are not told apart."""
        self._names = {path: path.removeprefix("/") for path in methods}
        self._observers = tuple(observers)
        self.arrivals = 0  # calls that have come, watches too; gRPC's one thread counts them

    def arrived(self, path: str, metadata: Metadata) -> CallRecord:
        """Returns the record of a call that arrives, which is this context's from now on."""
        name = self._names.get(path)
        # What is no method of ours may be long, or try to look like another line of the log.
        call = CallRecord(name or UNKNOWN_METHOD, name or ascii(path[:_MAX_PATH]), metadata, self._observers)
        CURRENT_CALL.set(call)
        return call


CURRENT_CALL: ContextVar[CallRecord] = ContextVar("call")
"""The record of this context's call; gRPC gives each call a context of its own."""


def current_call() -> CallRecord:
    """Returns the record of the call that this thread answers; other threads that work for it are given it.

    Raises PermissionDeniedError if this thread answers none that came through the interceptor.
    """
    call = CURRENT_CALL.get(None)
    if call is None:
        raise PermissionDeniedError("Expected a call that was authenticated. Received one of which nothing is known.")
    return call


def current_identity() -> Identity:
    """Returns who the call is from that this thread answers. Raises PermissionDeniedError if that is not known."""
    identity = current_call().identity
    if identity is None:
        raise PermissionDeniedError("Expected a caller who was authenticated. Received one who was not.")
    return identity


def current_caller(context: grpc.ServicerContext) -> Caller:
    """Returns the caller of this thread's call, as the scheduler sees it; raises as `current_identity`."""
    identity = current_identity()
    name, is_identified = identity.caller, identity.is_one_caller
    return Caller(name, is_identified, context.is_active, context.time_remaining, context.add_callback, context.cancel)


def _request_id(metadata: Metadata) -> str:
    """Returns the id that a caller gave its request if it is a word of printable ASCII, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return f"{_PROCESS_ID}-{next(_NUMBERS):x}"
