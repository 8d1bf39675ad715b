"""What an OpenTelemetry collector receives: a server that keeps the spans that are sent to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.waiting import eventually


@dataclass(frozen=True)
class Span:
    """A span, and who sent it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: tuple[str, ...]
    status: int


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 (the contract's)
        with self._lock:
            for resource in request.resource_spans:
                service = _values(resource.resource.attributes)["service.name"]
                self._spans += [_span(service, each) for scope in resource.scope_spans for each in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace: str = "") -> list[Span]:
        """Returns the spans of a trace, or all, in the order in which they began."""
        with self._lock:
            return sorted(
                (each for each in self._spans if trace in ("", each.trace)), key=lambda each: (each.begin_ns, each.name)
            )

    def waited_for(self, condition: Callable[[list[Span]], bool], trace: str = "") -> list[Span]:
        """Returns the spans of a trace as soon as they meet a condition."""

        def found() -> list[Span]:
            spans = self.spans(trace)
            return spans if condition(spans) else []

        return eventually(found)  # type: ignore[no-any-return]


def _span(service: str, span: Any) -> Span:
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        tuple(each.name for each in span.events),
        span.status.code,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(each) for each in found.values] if kind == "array_value" else found


@contextmanager
def span_collector() -> Iterator[Collector]:
    """Runs a collector."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None).wait()


@contextmanager
def http_span_collector() -> Iterator[Collector]:
    """Runs a collector that is sent spans by HTTP, at the path of OpenTelemetry's specification alone."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            is_ours = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            if is_ours:
                collector.Export(trace_service_pb2.ExportTraceServiceRequest.FromString(request), None)
            self.send_response(200 if is_ours else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()
