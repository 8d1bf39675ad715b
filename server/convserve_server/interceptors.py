"""What holds for every RPC, so that no method can forget it: requests are parsed, and errors answered, in one place.

And callers that send as slowly as they like cannot keep the threads that all others need.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from convserve import ConvserveError, InternalError, InvalidRequestError, OutOfMemoryError, UnimplementedError
from convserve.errors import FieldViolation
from convserve.status import to_status
from convserve_server.call_record import current_call
from convserve_server.silence import SilenceWatch

log = logging.getLogger("convserve")

Handler = Any  # grpc.RpcMethodHandler: gRPC types its four behaviours as optional, of which one is always there


class CallInterceptor(grpc.ServerInterceptor):
    """Parses requests and turns exceptions into statuses, and has streams of requests received by threads of their own.

    An exception of ours travels with its details. Any other is a defect: it is logged under an id, and the caller gets
    the id and nothing else. Requests are parsed here because gRPC answers bytes that are no message with INTERNAL.

    A thread waits for each message of a stream. So each method that takes streams has its own threads: callers that
    stall wait for each other, and nobody else does. One that is silent for too long while all the server does is to
    wait for it, as in a put, is sent away. Between messages of a stream that is answered as it goes any time may pass.
    """

    def __init__(self, threads: int, silence_s: float = 60.0) -> None:
        """Prepares to wrap methods.

        Args:
            threads: How many calls of each method that takes streams are received at once.
            silence_s: Seconds that may pass between two messages of a call that is answered at its end.
        """
        self._threads = threads
        self._silence_s = silence_s
        self._silence = SilenceWatch(silence_s)
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the method's handler, wrapped."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if getattr(handler.unary_stream, "experimental_non_blocking", False):
            return handler  # the health service's Watch: wrapped, each watcher would keep a handler thread to itself
        if handler.request_streaming:
            inner = handler.stream_stream or handler.stream_unary
            parse: Callable[[Any], Any] = lambda raw: (_parsed(handler, each) for each in raw)  # noqa: E731
        else:
            inner = handler.unary_stream or handler.unary_unary
            parse = lambda raw: _parsed(handler, raw)  # noqa: E731

        def one_answer(raw: Any, context: grpc.ServicerContext) -> Any:
            with _answering_errors(method, context):
                if handler.request_streaming:
                    raw = self._silence.watched(raw, lambda: self._end(method, context))
                return inner(parse(raw), context)

        def many_answers(raw: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _answering_errors(method, context):
                yield from inner(parse(raw), context)

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour: Any = many_answers if handler.response_streaming else one_answer
        if handler.request_streaming:
            if method not in self._pools:  # of two made at once one is not used
                self._pools[method] = ThreadPoolExecutor(self._threads, thread_name_prefix=method)
            behaviour.experimental_thread_pool = self._pools[method]
        return make(behaviour, request_deserializer=None, response_serializer=handler.response_serializer)

    def _end(self, method: str, context: grpc.ServicerContext) -> None:
        log.info("%s of %s is ended: nothing came for %g s", method, context.peer(), self._silence_s)
        context.cancel()


def _parsed(handler: Handler, raw: bytes) -> Any:
    try:
        return handler.request_deserializer(raw)
    except DecodeError as error:
        text = f"Expected a message of the contract. Received {len(raw)} bytes that are none: {error}."
        raise InvalidRequestError(FieldViolation("request", text)) from None


@contextmanager
def _answering_errors(method: str, context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
        return
    except Exception as error:
        if not isinstance(error, ConvserveError) and not context.is_active():
            raise  # the caller left, and what failed is the answer to nobody
        told = as_answer(error, method)
    current_call().refused(told)
    status = to_status(told)
    # Not abort_with_status, which would drop what others have set.
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *(status.trailing_metadata or ())))
    context.abort(status.code, status.details)


def as_answer(error: Exception, method: str) -> ConvserveError:
    """Returns what a caller is told of an exception; one that is not ours is logged under an id."""
    if isinstance(error, ConvserveError):
        log.debug("%s answered %s: %s", method, error.code.name, error)
        return error
    if isinstance(error, MemoryError):
        text = f"Expected memory on the server's machine. Received none: send less in one call. {error}"
        return OutOfMemoryError(text)
    if isinstance(error, NotImplementedError):
        return UnimplementedError(f"Expected a call that this server has. It has no {method}.")
    error_id = uuid.uuid4().hex[:12]
    ids = {"error_id": error_id, "request_id": current_call().request_id}
    log.error("%s failed, error id %s, request id %s", method, *ids.values(), exc_info=error, extra=ids)
    text = f"The server failed. Its log has the details under error id {error_id}."
    return InternalError(text, error_id=error_id)
