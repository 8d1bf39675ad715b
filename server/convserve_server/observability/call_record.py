"""What is known of a call: a record that the interceptor begins, the services fill, and observers read."""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar

from convserve.errors import ConvserveError, InternalError, PermissionDeniedError
from convserve.v1 import error_pb2
from convserve_server.auth.identity import Identity
from convserve_server.scheduling.scheduler import Computation

REQUEST_ID = "x-request-id"
"""The metadata's key of a request's id, on its way in and back."""
UNKNOWN_METHOD = "unknown"
"""What a method is called that this server does not have; its own name could be anything."""
REASONS = {
    number: name.removeprefix("ERROR_REASON_") for name, number in error_pb2.ErrorReason.items() if number
}  # fmt: skip
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


class CallRecord:
    """A call that arrives now.

    Attributes:
        method: "package.Service/Method", or UNKNOWN_METHOD: a name out of a bounded number.
        method_label: The same, but an unknown one as the caller named it.
        metadata: What the caller sent beside the request. It may have secrets.
        request_id: The caller's, or one that was made.
        trace_id: In hexadecimal, where the call is traced; else empty.
        identity: Who called; None until it is authenticated.
        arrived_ns: When, in nanoseconds since 1970.
        duration_us: From then until the last byte was sent.
        code: The status code's name; empty while the call is under way.
        reason: Why it failed, a name of ErrorReason; else empty.
        error_id: Under which the log has a defect; else empty.
        first: The first forward pass; None without one.
        items: How many forward passes there were; `queue_us` and `compute_us` are theirs together.
        items_refused: How many items of a stream were refused.
        batch_size: The largest.
        received_bytes: Of messages, as `sent_bytes`.
        answered: Whether the method has returned its whole answer.
    """

    def __init__(
        self, method: str, method_label: str, metadata: Metadata = (), observers: Sequence[Observer] = ()
    ) -> None:
        self.arrived_ns, self._began = time.time_ns(), time.monotonic_ns()
        self.method, self.method_label, self.metadata = method, method_label, metadata
        self.request_id = _request_id(metadata)
        self._observers = observers
        self._lock = threading.Lock()  # items of a stream are computed by several threads
        self.trace_id = self.code = self.reason = self.error_id = ""
        self.identity: Identity | None = None
        self.first: Computation | None = None
        self.items = self.items_refused = self.queue_us = self.compute_us = self.batch_size = 0
        self.received_bytes = self.sent_bytes = self.duration_us = 0
        self.answered = False

    @property
    def caller(self) -> str:
        """Who called, in one word."""
        return self.identity.caller if self.identity else ""

    def begin(self) -> None:
        """Notes that a thread has taken the call."""
        if self._observers:
            self._notify(lambda observer: observer.began(self))

    def computed(self, computation: Computation) -> None:
        """Adds a forward pass."""
        with self._lock:
            self.first = self.first or computation
            self.items += 1
            self.queue_us += computation.queue_us
            self.compute_us += computation.compute_us
            self.batch_size = max(self.batch_size, computation.batch_size)
        if self._observers:
            self._notify(lambda observer: observer.computed(self, computation))

    def refused(self, error: ConvserveError) -> None:
        """Notes what the call fails with."""
        self.reason = REASONS.get(error.reason, "")
        self._notify_refused(error)

    def refused_item(self, error: ConvserveError) -> None:
        """Notes what an item of a stream fails with; the stream goes on."""
        with self._lock:
            self.items_refused += 1
        self._notify_refused(error)

    def _notify_refused(self, error: ConvserveError) -> None:
        if isinstance(error, InternalError):
            self.error_id = error.error_id
        if error.reason in REASONS:
            self._notify(lambda observer: observer.refused(self, REASONS[error.reason]))

    def end(self, code: str) -> None:
        """Completes the record."""
        self.code = code
        self.duration_us = (time.monotonic_ns() - self._began) // 1000
        if self._observers:
            self._notify(lambda observer: observer.ended(self))

    def _notify(self, notify: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                notify(observer)
            except Exception:
                log.exception("%s failed at a call of %s", type(observer).__name__, self.method_label)


class CallRecorder:
    """Begins the record of each call.

    A call counts from the moment that a thread takes it; one that its caller gives up before is not counted. Watches of
    the health, which last as long as their connection and keep no thread, are not recorded.

    Attributes:
        arrivals: How many calls have come, watches too; gRPC's one thread counts them.
    """

    def __init__(self, methods: Iterable[str] = (), observers: Sequence[Observer] = ()) -> None:
        """Prepares to record calls of methods with these paths; calls of others are not told apart."""
        self._names = {path: path.removeprefix("/") for path in methods}
        self._observers = tuple(observers)
        self.arrivals = 0

    def arrived(self, path: str, metadata: Metadata) -> CallRecord:
        """Returns the record of a call that arrives, which is this context's from now on."""
        name = self._names.get(path)
        # What is no method of ours may be long, or try to look like another line of the log.
        call = CallRecord(name or UNKNOWN_METHOD, name or ascii(path[:_MAX_PATH]), metadata, self._observers)
        make_current(call)
        return call


_current: ContextVar[CallRecord] = ContextVar("call")


def make_current(call: CallRecord) -> None:
    """Makes a record that of this context's call; gRPC gives each call a context of its own."""
    _current.set(call)


def current_call() -> CallRecord:
    """Returns the record of the call that this thread answers; other threads that work for it are given it.

    Raises PermissionDeniedError if this thread answers none that came through the interceptor.
    """
    call = _current.get(None)
    if call is None:
        raise PermissionDeniedError("Expected a call that was authenticated. Received one of which nothing is known.")
    return call


def current_identity() -> Identity:
    """Returns who the call is from that this thread answers. Raises PermissionDeniedError if that is not known."""
    identity = current_call().identity
    if identity is None:
        raise PermissionDeniedError("Expected a caller who was authenticated. Received one who was not.")
    return identity


def _request_id(metadata: Metadata) -> str:
    """Returns the id that a caller gave its request if it is a word of printable ASCII, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return f"{_PROCESS_ID}-{next(_NUMBERS):x}"
