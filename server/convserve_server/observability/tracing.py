"""Spans for OpenTelemetry: one per call, below the caller's own, and below it what it waited and computed.

The server does not use opentelemetry-instrumentation-grpc, as callers do: it drops the thread pools of our handlers,
and does not see the status of `ServicerContext.abort_with_status`.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from convserve._version import __version__
from convserve_server.observability.call_record import CallRecord, Observer
from convserve_server.scheduling.scheduler import Computation

# Statuses that are the server's fault, as OpenTelemetry's conventions for gRPC have it.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing(Observer):
    """Makes spans of calls. OpenTelemetry's own variables, OTEL_*, say where they go."""

    def __init__(self, exporters: Iterable[str]) -> None:
        """Sends spans by each of "grpc", "http/protobuf" and "console", which is stdout."""
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "convserve"}))
        self._provider = TracerProvider(resource=resource)
        for name in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
        self._tracer = self._provider.get_tracer("convserve", __version__)
        self._spans: dict[CallRecord, Span] = {}

    def began(self, call: CallRecord) -> None:
        """Begins the call's span, below the caller's if its metadata have one; none for checks of the health."""
        if call.method.startswith("grpc.health."):
            return
        # Not OpenTelemetry's baggage: it goes nowhere from here, and a malformed one would be logged.
        carrier = {key: value for key, value in call.metadata if isinstance(value, str) and key != "baggage"}
        service, _, method = call.method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        attributes["convserve.request_id"] = call.request_id
        above = propagate.extract(carrier)
        span = self._tracer.start_span(call.method, above, SpanKind.SERVER, attributes, start_time=call.arrived_ns)
        call.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        if span.is_recording():
            self._spans[call] = span

    def computed(self, call: CallRecord, computation: Computation) -> None:
        """Adds the two spans of a forward pass."""
        span = self._spans.get(call)
        if span is None:
            return
        below = trace.set_span_in_context(span)
        began = computation.began_ns
        started = began + computation.queue_us * 1000
        self._tracer.start_span("queue", below, start_time=began).end(started)
        names = ("batch_size", "device", "warm", "input_shape", "output_shape")
        attributes = {f"convserve.{name}": getattr(computation, name) for name in names}
        compute = self._tracer.start_span("compute", below, attributes=attributes, start_time=started)
        compute.end(started + computation.compute_us * 1000)

    def refused(self, call: CallRecord, reason: str) -> None:
        """Adds the reason as an event."""
        span = self._spans.get(call)
        if span is not None:
            span.add_event("refused", {"convserve.reason": reason})

    def ended(self, call: CallRecord) -> None:
        """Ends the call's span."""
        span = self._spans.pop(call, None)
        if span is None:
            return
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[call.code].value[0])
        span.set_attribute("convserve.caller", call.caller)
        for name, value in (("error.type", call.reason), ("convserve.error_id", call.error_id)):
            if value:
                span.set_attribute(name, value)
        if call.code in _FAULTS:
            span.set_status(Status(StatusCode.ERROR, call.code))
        span.end(call.arrived_ns + call.duration_us * 1000)

    def close(self) -> None:
        """Sends the spans that are left."""
        self._provider.shutdown()


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter(formatter=lambda span: f"{span.to_json(indent=None)}\n")  # a line each
    if name == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as by_grpc

        return by_grpc.OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as by_http

    return by_http.OTLPSpanExporter()
