"""A line of log for every request: who called what, how it ended, and where the time went."""

from __future__ import annotations

import logging
import queue
from logging.handlers import QueueHandler, QueueListener
from typing import Any

from convserve_server.observability.call_record import CallRecord, Observer

# Lines that wait to be written. Where nobody reads the log, further ones are dropped.
_MAX_WAITING = 10_000
_HEALTH = "grpc.health."
_COUNTS = ("items", "items_refused", "received_bytes", "sent_bytes")


class RequestLog(Observer):
    """Writes a line per request, at the level info; of health checks at the level debug.

    A thread of its own writes it, so that no call waits for a disk or for the log's reader.
    """

    def __init__(self, handler: logging.Handler, *, as_fields: bool) -> None:
        """Starts to write. `as_fields`: the handler writes a record's fields, as JSON; else lines are in words."""
        self._as_fields = as_fields
        self._log = logging.getLogger("convserve.requests")
        self._log.propagate = False
        self._waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._handler = _Waiting(self._waiting)
        self._log.addHandler(self._handler)
        self._listener = QueueListener(self._waiting, handler)
        self._listener.start()

    def ended(self, call: CallRecord) -> None:
        """Writes the line."""
        level = logging.DEBUG if call.method.startswith(_HEALTH) else logging.INFO
        if self._log.isEnabledFor(level):
            fields = fields_of(call)
            self._log.log(level, "request" if self._as_fields else _Words(fields), extra=fields)

    def close(self) -> None:
        """Writes what waits, and ends."""
        self._log.removeHandler(self._handler)
        self._listener.stop()


class _Waiting(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() < _MAX_WAITING:  # type: ignore[attr-defined]
            self.queue.put_nowait(record)


def fields_of(call: CallRecord) -> dict[str, Any]:
    """Returns what a line says; a field that means nothing for a call is None."""
    first = call.first
    fields: dict[str, Any] = {"method": call.method_label}
    fields |= {name: getattr(call, name) for name in ("request_id", "caller", "code", "duration_us", *_COUNTS)}
    fields |= {name: getattr(call, name) or None for name in ("trace_id", "reason", "error_id")}
    fields |= {name: getattr(call, name) if first else None for name in ("queue_us", "compute_us", "batch_size")}
    return fields | {name: getattr(first, name, None) for name in ("device", "input_shape", "output_shape")}


class _Words:
    """A line's fields in words, joined only when they are written."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        fields = self._fields
        words = [f"{fields['method']} {fields['code']}"]
        if fields["reason"]:
            words[0] += f" ({fields['reason']})"
        words.append(f"from {fields['caller'] or 'somebody'}")
        if fields["input_shape"]:
            words.append(f"{fields['input_shape']} to {fields['output_shape']}")
            words.append(f"batch of {fields['batch_size']} on {fields['device']}")
            words.append(f"queue {fields['queue_us'] / 1e3:.3f} ms")
            words.append(f"compute {fields['compute_us'] / 1e3:.3f} ms")
        words.append(f"duration {fields['duration_us'] / 1e3:.3f} ms")
        if fields["items"] > 1 or fields["items_refused"]:
            words.append(f"{fields['items']} items, {fields['items_refused']} refused")
        words.append(f"{fields['received_bytes']} bytes in, {fields['sent_bytes']} out")
        words += [f"{name} {fields[name]}" for name in ("request_id", "error_id", "trace_id") if fields[name]]
        return ", ".join(words)
