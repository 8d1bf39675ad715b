"""Begins and ends the record of every call, around all that other interceptors and services do with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

from convserve_server.auth.identity import CallContext, caller_of
from convserve_server.observability.call_record import (
    REQUEST_ID,
    UNKNOWN_METHOD,
    CallRecord,
    Metadata,
    Observer,
    make_current,
)

Handler = Any  # grpc.RpcMethodHandler: gRPC types its four behaviours as optional, of which one is always there

_MAX_PATH = 200  # characters of a method's name that is none of ours
# By how much a timeout that gRPC's core sends may be longer than its caller's, as a part of it, and what the message
# that a call is cancelled may have taken less than its request.
_ROUNDED_BY, _ON_THE_WAY_S = 0.01, 0.02
_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class ObservingInterceptor(grpc.ServerInterceptor):
    """Tells observers of calls, and gives every answer its request's id. It is to be the first interceptor.

    A call counts from the moment that a thread takes it; one that its caller gives up before is none. Watches of the
    health, which last as long as their connection and keep no thread, are not observed.
    """

    def __init__(self, methods: Iterable[str], observers: Sequence[Observer]) -> None:
        """Prepares to wrap methods.

        Args:
            methods: The paths of those that the server may have; calls of others are not told apart.
            observers: Who is told.
        """
        self._names = {path: path.removeprefix("/") for path in methods}
        self._observers = tuple(observers)
        self.arrivals = 0
        """How many calls have come; gRPC's one thread counts them."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the method's handler, wrapped."""
        call = self.arrived(handler_call_details.method, handler_call_details.invocation_metadata or ())
        handler = continuation(handler_call_details)
        if handler is None:  # gRPC answers it, and nobody is asked any more
            call.begin()
            call.end(grpc.StatusCode.UNIMPLEMENTED.name, caller="")
            return None
        return _observed(handler, call)

    def arrived(self, path: str, metadata: Metadata) -> CallRecord:
        """Returns the record of a call that arrives, which is this context's from now on."""
        self.arrivals += 1
        method = self._names.get(path)
        # What is no method of ours may be long, or try to look like another line of the log.
        told = method or ascii(path[:_MAX_PATH])
        call = CallRecord(method or UNKNOWN_METHOD, told, metadata, self._observers)
        make_current(call)
        return call


def _observed(handler: Handler, call: CallRecord) -> Handler:
    inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if getattr(inner, "experimental_non_blocking", False):
        return handler
    deserialize, serialize = handler.request_deserializer, handler.response_serializer

    def received(data: bytes) -> Any:
        call.received_bytes += len(data)
        return data if deserialize is None else deserialize(data)

    def sent(response: Any) -> Any:
        data = response if serialize is None else serialize(response)
        call.sent_bytes += len(data)
        return data

    def one_answer(request: Any, context: grpc.ServicerContext) -> Any:
        begin(call, context)
        answer = inner(request, context)
        call.answered = True
        return answer

    def many_answers(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        begin(call, context)
        yield from inner(request, context)
        call.answered = True

    behaviour: Any = many_answers if handler.response_streaming else one_answer
    if hasattr(inner, "experimental_thread_pool"):
        behaviour.experimental_thread_pool = inner.experimental_thread_pool
    make = _MAKE[handler.request_streaming, handler.response_streaming]
    return make(behaviour, request_deserializer=received, response_serializer=sent)


def begin(call: CallRecord, context: CallContext) -> None:
    """Tells of a call that begins, and of its end when it comes."""
    call.begin()
    context.set_trailing_metadata(((REQUEST_ID, call.request_id),))

    caller = caller_of(context)  # here, as what tells it is known to this thread only

    def end() -> None:
        call.end(_code(call, context), caller)

    if not context.add_callback(end):  # it is over already
        end()


def _code(call: CallRecord, context: CallContext) -> str:
    """Returns the code that a call ended with, as its caller saw it."""
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined] # types-grpcio does not know it
    if code is not None and code is not grpc.StatusCode.OK:
        return code.name
    remaining_s = context.time_remaining()
    if call.answered:
        return (grpc.StatusCode.OK if remaining_s else grpc.StatusCode.DEADLINE_EXCEEDED).name
    # A caller whose time is up cancels. Here there may be some left: gRPC's core rounds what it sends.
    timeout_s = time.time() - call.arrived_ns / 1e9 + remaining_s
    up = remaining_s <= _ROUNDED_BY * timeout_s + _ON_THE_WAY_S
    return (grpc.StatusCode.DEADLINE_EXCEEDED if up else grpc.StatusCode.CANCELLED).name
