"""Servers whose methods tests set: gRPC's own with the interceptors in four forms, and one whose method is direct."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int64Value
from grpc_health.v1 import health, health_pb2_grpc

from convserve_server.direct_calls import DirectCalls, Gate
from convserve_server.observability.interceptor import ObservingInterceptor
from convserve_server.transport.call_interceptor import CallInterceptor
from convserve_server.transport.idle_timeouts import IdleTimeouts

PATH = "/test.Service/Method"
DIRECT = "direct"
FORMS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream", DIRECT]

Answer = Callable[[list[int]], int]
Serialize = Callable[[Int64Value], bytes]


class ServedMethods(grpc.GenericRpcHandler):
    """The methods, by their paths; and the one that is direct, whose path is PATH.

    Attributes:
        channel: To the server of all forms but the direct one.
    """

    def __init__(self) -> None:
        self.channel: Any = None
        self._direct_channel: Any = None
        self._handlers: dict[str, Any] = {}
        self._direct: tuple[Answer, Serialize] = sum, Int64Value.SerializeToString

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        """Returns a method's handler."""
        return self._handlers.get(call.method)

    def let(
        self, form: str, answer: Answer, path: str = PATH, serialize: Serialize = Int64Value.SerializeToString
    ) -> Any:
        """Sets what a method of a form answers, or raises, when it has read its requests. Returns its channel."""
        if form == DIRECT:
            self._direct = answer, serialize
            return self._direct_channel
        self._handlers[path] = _handler(form, answer, serialize)
        return self.channel

    def answer_directly(self, request: Int64Value, _: Any, reply: Callable[[Callable[[], bytes]], None]) -> None:
        """Answers as the method is set: in this thread, or, for even numbers, in another."""
        answer, serialize = self._direct

        def make() -> bytes:
            return serialize(Int64Value(value=answer([request.value])))

        if request.value % 2:
            reply(make)
        else:
            threading.Thread(target=reply, args=(make,)).start()


@contextmanager
def served_methods(
    observing: ObservingInterceptor | None = None, threads: int = 4, silence_s: float = 1.0
) -> Iterator[ServedMethods]:
    """Yields the methods of two servers, which it stops."""
    found, silence = ServedMethods(), IdleTimeouts(silence_s)
    interceptors = [*([observing] if observing else []), CallInterceptor(threads, silence)]
    server = grpc.server(ThreadPoolExecutor(2), interceptors=interceptors)
    server.add_generic_rpc_handlers((found,))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}") as found.channel,
        served_directly(
            Int64Value.FromString,
            found.answer_directly,
            observing=observing or ObservingInterceptor([], []),
            silence=silence,
            most_threads=threads,
        ) as (found._direct_channel, _),
    ):
        yield found
    server.stop(None).wait()


@contextmanager
def served_directly(
    parse: Callable[[bytes], Any],
    method: Callable[[Any, Any, Any], None],
    *gates: Gate,
    observing: ObservingInterceptor,
    silence: IdleTimeouts,
    most_threads: int,
) -> Iterator[tuple[grpc.Channel, DirectCalls]]:
    """Serves one method with direct calls, and stops; all its calls have to be over soon after."""
    server = grpc.server(ThreadPoolExecutor(1))
    direct = DirectCalls(server, observing, gates, silence, most_threads)
    direct.add(PATH, parse, method)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    direct.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, direct
    server.stop(None).wait()
    assert direct.stop(30)


def _handler(form: str, answer: Answer, serialize: Serialize) -> Any:
    def one(requests: Any, context: grpc.ServicerContext) -> Int64Value:
        received = [each.value for each in requests] if form.startswith("stream") else [requests.value]
        return Int64Value(value=answer(received))

    def many(requests: Any, context: grpc.ServicerContext) -> Iterator[Int64Value]:
        yield Int64Value(value=-1)
        yield one(requests, context)

    make = getattr(grpc, f"{form}_rpc_method_handler")
    return make(many if form.endswith("stream") else one, Int64Value.FromString, serialize)
