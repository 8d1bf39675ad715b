"""What holds for every RPC, so that no method can forget it: requests are parsed, and errors answered, in one place.

And callers that send as slowly as they like cannot keep the threads that all others need.
"""

from __future__ import annotations

import functools
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from convserve.errors import (
    ConvserveError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    OutOfMemoryError,
    OverloadedError,
    UnimplementedError,
)
from convserve.protocol.status import to_status
from convserve_server.auth.identity import CallContext, caller_of, is_identified
from convserve_server.observability.call_record import current_call
from convserve_server.transport.idle_timeouts import IdleTimeouts

log = logging.getLogger("convserve")

_MAX_ANSWER = 10  # times as long as one piece may take
_RETRY_S = 1.0
_NOTHING = nullcontext()

Handler = Any  # grpc.RpcMethodHandler: gRPC types its four behaviours as optional, of which one is always there


class CallInterceptor(grpc.ServerInterceptor):
    """Parses requests and turns exceptions into statuses, and has streams of requests received by threads of their own.

    An exception of ours travels with its details. Any other is a defect: it is logged under an id, and the caller gets
    the id and nothing else. Requests are parsed here because gRPC answers bytes that are no message with INTERNAL.

    A thread waits for each message that comes. So each method that takes streams has its own threads: callers that
    stall wait for each other, and nobody else does. A caller may have as many streams of a method as there are threads
    left, so that half of what is left is always for others. And who is silent for too long while all the server does is
    to wait for it, is sent away, and so is who does not fetch its answer. For that, a single request is received like
    a stream of one, which on the wire it is: gRPC's own way to receive it would keep a thread for as long as it takes.
    """

    def __init__(self, threads: int, silence: IdleTimeouts) -> None:
        """Prepares to wrap methods.

        Args:
            threads: How many calls of each method that takes streams are received at once.
            silence: Watches those that are waited for.
        """
        self._threads = threads
        self._silence = silence
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # by method: its handler, and that one wrapped
        self._lock = threading.Lock()
        self._streams: Counter[tuple[str, str]] = Counter()  # by method and caller
        self._taken: Counter[str] = Counter()  # threads, by method

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
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(handler, method)
            self._wrapped[method] = handler, wrapped
        return wrapped

    def _wrap(self, handler: Handler, method: str) -> Handler:
        if getattr(handler.unary_stream, "experimental_non_blocking", False):
            return handler  # the health service's Watch: wrapped, each watcher would keep a handler thread to itself
        inner = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        serialize = handler.response_serializer or bytes  # here, since gRPC tells of what it raises without an id

        def one_answer(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            try:
                with self._place_of(handler, method, context):
                    answer = serialize(inner(self._request(handler, method, raw, context), context))
            except Exception as error:
                status = status_of(error, method, context)
                if status is None:
                    raise
            else:
                watch_fetching(self._silence, method, context)
                return answer
            _abort(status, context)

        def boxed(answer: Any) -> list[Any]:
            # A list, which gRPC empties: it, and the loop below, would keep the last answer and wait for the next.
            return [serialize(answer)]

        def many_answers(raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                with self._place_of(handler, method, context):
                    for answer in map(boxed, inner(self._request(handler, method, raw, context), context)):
                        with self._silence.waiting(lambda: abort_idle(method, context)):  # until it is sent
                            yield answer
                return
            except Exception as error:
                status = status_of(error, method, context)
                if status is None:
                    raise
            _abort(status, context)

        behaviour: Any
        make, behaviour, fetch = {
            False: (grpc.stream_unary_rpc_method_handler, one_answer, None),
            True: (grpc.stream_stream_rpc_method_handler, many_answers, list.pop),
        }[handler.response_streaming]
        if handler.request_streaming:
            behaviour.experimental_thread_pool = ThreadPoolExecutor(self._threads, thread_name_prefix=method)
        return make(behaviour, request_deserializer=None, response_serializer=fetch)

    def _request(self, handler: Handler, method: str, raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        """Returns a method's request, or the iterator over its requests."""
        end = lambda: abort_idle(method, context)  # noqa: E731
        if handler.request_streaming:
            # A stream that is answered as it goes knows by itself when it waits for its caller.
            messages = raw if handler.response_streaming else self._silence.watched(raw, end)
            return map(functools.partial(parsed, handler.request_deserializer), messages)  # which keeps none of them
        with self._silence.waiting(end):
            received = next(raw, None)
        return parsed(handler.request_deserializer, received)

    def _place_of(self, handler: Handler, method: str, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """Lets a call have its thread for the block; one that is no stream has what it needs."""
        return self._thread_of(method, context) if handler.request_streaming else _NOTHING

    @contextmanager
    def _thread_of(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Lets a caller have a stream's thread for the block, if enough are left for others."""
        key = method, caller_of(context)
        with self._lock:
            mine, left = self._streams[key], self._threads - self._taken[method]
            if mine >= left if is_identified(key[1]) else not left:
                text = (
                    f"Expected a server with room for one more stream. Received one while {self._taken[method]} of "
                    f"{self._threads} are open, {mine} of them yours: put more items into one, or retry."
                )
                raise OverloadedError(text, retry_after_s=_RETRY_S)
            self._streams[key] += 1
            self._taken[method] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[method] -= 1
                self._streams[key] -= 1
                if not self._streams[key]:
                    del self._streams[key]


def abort_idle(method: str, context: CallContext) -> None:
    """Ends a call whose caller says nothing."""
    log.info("%s of %s is ended: it was silent for too long", method, context.peer())
    context.cancel()


def watch_fetching(silence: IdleTimeouts, method: str, context: CallContext) -> None:
    """Watches a caller to whom an answer goes: it is kept until it is fetched, which may take longer than a piece."""
    wait = silence.waiting(lambda: abort_idle(method, context), times=_MAX_ANSWER)
    if not context.add_callback(wait.forget):
        wait.forget()


def parsed(parse: Callable[[bytes], Any], raw: bytes | None) -> Any:
    """Returns a request.

    Raises:
        InvalidRequestError: If there is none, or its bytes are none.
    """
    if raw is None:
        raise InvalidRequestError(FieldViolation("request", "Expected one message. Received none."))
    try:
        return parse(raw)
    except DecodeError as error:
        text = f"Expected a message of the contract. Received {len(raw)} bytes that are none: {error}."
        raise InvalidRequestError(FieldViolation("request", text)) from None


def status_of(error: Exception, method: str, context: CallContext) -> grpc.Status | None:
    """Returns the status that answers what a method raised, or None if its caller left: what failed is the answer.

    Callers abort with it once they have forgotten the error: it and its traceback, in which the tensors are, would keep
    each other.
    """
    if not isinstance(error, ConvserveError) and not context.is_active():
        return None
    return _noted(as_answer(error, method))


def refuse(error: ConvserveError, context: grpc.ServicerContext) -> NoReturn:
    """Ends a call with an error, which its record is told of."""
    _abort(_noted(error), context)


def _noted(error: ConvserveError) -> grpc.Status:
    """Returns an error's status, having told the call's record of it."""
    current_call().refused(error)
    return to_status(error)


def _abort(status: grpc.Status, context: grpc.ServicerContext) -> NoReturn:
    # Not abort_with_status, which would drop what others have set.
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *(status.trailing_metadata or ())))
    context.abort(status.code, status.details)
    raise AssertionError  # abort has raised


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
