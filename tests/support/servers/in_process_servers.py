"""Servers whose methods tests set: gRPC's own with the interceptor, in four forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from grpc_health.v1 import health, health_pb2_grpc

from convserve_server.auth.authenticator import Authenticator
from convserve_server.observability.call_record import CallRecorder
from convserve_server.scheduling.thread_pool import ThreadPool
from convserve_server.transport.call_interceptor import CallInterceptor
from convserve_server.transport.connections import Connections
from convserve_server.transport.idle_timeouts import IdleTimeouts
from convserve_server.transport.stream_slots import ReceivingSlots, StreamSlots

PATH = "/test.Service/Method"
FORMS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
EVERY_FORM = pytest.mark.parametrize("form", FORMS)

Answer = Callable[[list[int]], int]
Serialize = Callable[[Int64Value], bytes]


class ServedMethods(grpc.GenericRpcHandler):
    """The methods, by their paths.

    Attributes:
        channel: To the server.
        target: The server's address.
    """

    def __init__(self) -> None:
        self.channel: Any = None
        self.target = ""
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
    recorder: CallRecorder | None = None, slots: int = 4, idle_s: float = 1.0
) -> Iterator[ServedMethods]:
    """Yields the methods of a server, which it stops."""
    methods = ServedMethods()
    idle, connections = IdleTimeouts(idle_s), Connections(1000, 2000)
    stream_slots, receiving = StreamSlots(slots), ReceivingSlots(slots)
    interceptor = CallInterceptor(
        recorder or CallRecorder(), Authenticator(), stream_slots, receiving, idle, {}, connections
    )
    pool: Any = ThreadPool(3 * slots, "call")
    server = grpc.server(pool, interceptors=[interceptor])
    server.add_generic_rpc_handlers((methods,))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    methods.target = f"127.0.0.1:{port}"
    with grpc.insecure_channel(methods.target) as methods.channel:
        yield methods
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
