"""Servers whose methods tests set: gRPC's own with the interceptors, in four forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from grpc_health.v1 import health, health_pb2_grpc

from convserve_server.observability.interceptor import ObservingInterceptor
from convserve_server.transport.call_interceptor import CallInterceptor
from convserve_server.transport.idle_timeouts import IdleTimeouts

PATH = "/test.Service/Method"
FORMS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
EVERY_FORM = pytest.mark.parametrize("form", FORMS)

Answer = Callable[[list[int]], int]
Serialize = Callable[[Int64Value], bytes]


class ServedMethods(grpc.GenericRpcHandler):
    """The methods, by their paths.

    Attributes:
        channel: To the server.
    """

    def __init__(self) -> None:
        self.channel: Any = None
        self._handlers: dict[str, Any] = {}

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        """Returns a method's handler."""
        return self._handlers.get(call.method)

    def let(
        self, form: str, answer: Answer, path: str = PATH, serialize: Serialize = Int64Value.SerializeToString
    ) -> Any:
        """Sets what a method of a form answers, or raises, when it has read its requests. Returns its channel."""
        self._handlers[path] = _handler(form, answer, serialize)
        return self.channel


@contextmanager
def served_methods(
    observing: ObservingInterceptor | None = None, threads: int = 4, silence_s: float = 1.0
) -> Iterator[ServedMethods]:
    """Yields the methods of a server, which it stops."""
    found, silence = ServedMethods(), IdleTimeouts(silence_s)
    interceptors = [*([observing] if observing else []), CallInterceptor(threads, silence)]
    server = grpc.server(ThreadPoolExecutor(2), interceptors=interceptors)
    server.add_generic_rpc_handlers((found,))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as found.channel:
        yield found
    server.stop(None).wait()


def _handler(form: str, answer: Answer, serialize: Serialize) -> Any:
    def one(requests: Any, context: grpc.ServicerContext) -> Int64Value:
        received = [each.value for each in requests] if form.startswith("stream") else [requests.value]
        return Int64Value(value=answer(received))

    def many(requests: Any, context: grpc.ServicerContext) -> Iterator[Int64Value]:
        yield Int64Value(value=-1)
        yield one(requests, context)

    make = getattr(grpc, f"{form}_rpc_method_handler")
    return make(many if form.endswith("stream") else one, Int64Value.FromString, serialize)


def sent(*values: int) -> list[bytes]:
    """Returns the messages of a method's requests."""
    return [Int64Value(value=value).SerializeToString() for value in values]


def raising(error: Exception) -> Answer:
    """Returns an answer that raises."""

    def answer(received: list[int]) -> int:
        raise error

    return answer
