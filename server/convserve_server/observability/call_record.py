"""What is known of a call: a record that the interceptor begins, the services fill, and observers are told of."""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar

from convserve.errors import ConvserveError, InternalError
from convserve.v1 import error_pb2
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
# Ids that are made are those of this process, numbered: a random one for each call would cost more than all the rest.
_MADE_BY, _NUMBERS = uuid.uuid4().hex[:16], itertools.count(1)


class Observer:
    """Who is told of calls, as far as it wants to know. The methods are to be quick; any thread may call them.

    What they raise is logged, and harms neither the call nor other observers.
    """

    def began(self, call: CallRecord) -> None:
        """Is told of a call whose request, or the first message of it, is there."""

    def computed(self, call: CallRecord, computation: Computation) -> None:
        """Is told of each forward pass, as soon as it is done."""

    def refused(self, call: CallRecord, reason: str) -> None:
        """Is told why a call, or an item of a stream, is answered with an error."""

    def ended(self, call: CallRecord) -> None:
        """Is told of a call that is over for both ends; the record is complete."""


class CallRecord:
    """A call.

    Attributes:
        method: "package.Service/Method", or UNKNOWN_METHOD: a name out of a bounded number.
        method_label: The same, but an unknown one as the caller named it.
        metadata: What the caller sent beside the request. It may have secrets.
        request_id: The caller's, or one that was made.
        trace_id: In hexadecimal, where the call is traced; else empty.
        caller: Who called.
        arrived_ns: When, in nanoseconds since 1970.
        duration_us: From then until the last byte was sent, in microseconds.
        code: The status code's name; empty while the call is under way.
        reason: Why it failed, a name of ErrorReason; else empty.
        error_id: Under which the log has a defect; else empty.
        first: The first forward pass; None without one.
        items: How many forward passes there were.
        items_refused: How many items of a stream were refused.
        queue_us: Of all forward passes together.
        compute_us: Of all forward passes together.
        batch_size: The largest.
        received_bytes: Of messages.
        sent_bytes: Of messages.
        answered: Whether the method returned its whole answer.
    """

    __slots__ = (
        "_began",
        "_lock",
        "_observers",
        "answered",
        "arrived_ns",
        "batch_size",
        "caller",
        "code",
        "compute_us",
        "duration_us",
        "error_id",
        "first",
        "items",
        "items_refused",
        "metadata",
        "method",
        "method_label",
        "queue_us",
        "reason",
        "received_bytes",
        "request_id",
        "sent_bytes",
        "trace_id",
    )

    def __init__(
        self, method: str, method_label: str, metadata: Metadata = (), observers: Iterable[Observer] = ()
    ) -> None:
        """Starts the record of a call that arrives now."""
        self.arrived_ns, self._began = time.time_ns(), time.monotonic_ns()
        self.method, self.method_label, self.metadata = method, method_label, metadata
        self.request_id = _request_id(metadata)
        self._observers = observers
        self._lock = threading.Lock()  # items of a stream are computed by several threads
        self.trace_id = self.caller = self.code = self.reason = self.error_id = ""
        self.first: Computation | None = None
        self.items = self.items_refused = self.queue_us = self.compute_us = self.batch_size = 0
        self.received_bytes = self.sent_bytes = self.duration_us = 0
        self.answered = False

    def begin(self) -> None:
        """Tells the observers that the call has begun."""
        self._tell(lambda each: each.began(self))

    def computed(self, computation: Computation) -> None:
        """Adds a forward pass."""
        with self._lock:
            self.first = self.first or computation
            self.items += 1
            self.queue_us += computation.queue_us
            self.compute_us += computation.compute_us
            self.batch_size = max(self.batch_size, computation.batch_size)
        self._tell(lambda each: each.computed(self, computation))

    def refused(self, error: ConvserveError) -> None:
        """Says what the call fails with."""
        self.reason = REASONS.get(error.reason, "")
        self._tell_refused(error)

    def refused_item(self, error: ConvserveError) -> None:
        """Says what an item of a stream fails with; the stream goes on."""
        with self._lock:
            self.items_refused += 1
        self._tell_refused(error)

    def _tell_refused(self, error: ConvserveError) -> None:
        if isinstance(error, InternalError):
            self.error_id = error.error_id
        if error.reason in REASONS:
            self._tell(lambda each: each.refused(self, REASONS[error.reason]))

    def end(self, code: str, caller: str) -> None:
        """Completes the record and tells the observers."""
        self.code, self.caller = code, caller
        self.duration_us = (time.monotonic_ns() - self._began) // 1000
        self._tell(lambda each: each.ended(self))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        for each in self._observers:
            try:
                tell(each)
            except Exception:
                log.exception("%s failed at a call of %s", type(each).__name__, self.method_label)


_current: ContextVar[CallRecord | None] = ContextVar("call", default=None)


def make_current(call: CallRecord) -> None:
    """Makes a record that of this context's call; each call has one of its own."""
    _current.set(call)


def current_call() -> CallRecord:
    """Returns the record of the call that this thread answers; one that nobody looks at if there is none."""
    return _current.get() or CallRecord(UNKNOWN_METHOD, UNKNOWN_METHOD)


def _request_id(metadata: Metadata) -> str:
    """Returns the id that a caller gave its request if it is a word of printable ASCII, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return f"{_MADE_BY}-{next(_NUMBERS):x}"
