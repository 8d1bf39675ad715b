"""What every call passes through, so that no method can forget it.

    a call arrives -> its record begins -> a thread takes it -> who is it? may it? -> its request is received and parsed
        -> the method -> its answer is written -> the answer is sent, the record ends

An exception on the way becomes a status (call_errors.py). A caller that sends or fetches nothing for too long while the
server only waits for it has its call ended. For that a single request is received like a stream of one, which on the
wire it is: gRPC's own way to receive it would keep the thread for as long as the caller likes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import grpc

from convserve.errors import PermissionDeniedError
from convserve.protocol.status import to_status
from convserve_server.auth.authenticator import Authenticator, permissions_for
from convserve_server.auth.identity import Identity, anyone
from convserve_server.observability.call_record import REQUEST_ID, CallRecord, CallRecorder, current_call
from convserve_server.transport.call_errors import abort, parsed, status_of
from convserve_server.transport.grpc_private import code_at_end, is_non_blocking
from convserve_server.transport.idle_timeouts import IdleTimeouts, Wait
from convserve_server.transport.stream_slots import StreamSlots

log = logging.getLogger("convserve")

_MAX_FETCHING = 10  # times as long as for one piece: a whole answer may be fetched for so long

Handler = Any  # grpc.RpcMethodHandler: gRPC types its four behaviours as optional, of which one is always there


def _no_method(request: object, context: grpc.ServicerContext) -> object:
    raise NotImplementedError


_NO_METHOD: Handler = grpc.unary_unary_rpc_method_handler(_no_method)


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps each method once. It is to be the only interceptor.

    A call whose requests are a stream keeps a slot, of which there are fewer than threads: so streams that stall cannot
    take the threads of other calls.
    """

    def __init__(
        self, recorder: CallRecorder, authenticator: Authenticator, slots: StreamSlots, idle: IdleTimeouts
    ) -> None:
        """Prepares to wrap methods."""
        self.recorder, self.authenticator, self.slots, self.idle = recorder, authenticator, slots, idle
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # by method: its handler, and that one wrapped

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the method's handler, wrapped."""
        self.recorder.arrivals += 1
        path = handler_call_details.method
        handler = continuation(handler_call_details)
        if handler is None:
            self.recorder.arrived(path, handler_call_details.invocation_metadata or ())
            return _wrapped(_NO_METHOD, path, self)  # not kept: such paths are any number
        if is_non_blocking(handler) and not permissions_for(path):
            return handler  # wrapped, each watch of the health would keep a thread
        self.recorder.arrived(path, handler_call_details.invocation_metadata or ())
        known, wrapped = self._wrapped.get(path, (None, None))
        if known is not handler:
            wrapped = _wrapped(handler, path, self)
            self._wrapped[path] = handler, wrapped
        return wrapped


def _wrapped(handler: Handler, path: str, interceptor: CallInterceptor) -> Handler:
    method = _Method(handler, path, interceptor)
    if handler.response_streaming:
        # gRPC would keep the last answer while it waits for the next: it is given a list, and empties it.
        return grpc.stream_stream_rpc_method_handler(method.many_answers, None, list.pop)
    return grpc.stream_unary_rpc_method_handler(method.one_answer, None, None)


class _Method:
    """A method."""

    def __init__(self, handler: Handler, path: str, interceptor: CallInterceptor) -> None:
        self._path, self._interceptor = path, interceptor
        self._behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        self._takes_stream, self._gives_stream = handler.request_streaming, handler.response_streaming
        self._parse = handler.request_deserializer or bytes
        self._serialize = handler.response_serializer or bytes

    def one_answer(self, raw: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        call = _Call(self._path, context, self._interceptor)
        try:
            if self._takes_stream:
                with self._interceptor.slots.one(call.authenticate()):
                    answer = self._behaviour(self._requests(raw, call), context)
            else:
                call.authenticate()
                answer = self._behaviour(self._request(raw, call), context)
            data: bytes = self._serialize(answer)
            call.has_answered(len(data))
            return data
        except Exception as error:
            status = call.status_of(error)
            if status is None:
                raise
        return abort(status, context)

    def many_answers(self, raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[list[bytes]]:
        call = _Call(self._path, context, self._interceptor)
        try:
            identity = call.authenticate()
            if self._takes_stream:
                with self._interceptor.slots.one(identity):
                    yield from self._answers(self._requests(raw, call), call)
            else:
                yield from self._answers(self._request(raw, call), call)
            call.record.answered = True
            return
        except Exception as error:
            status = call.status_of(error)
            if status is None:
                raise
        abort(status, context)

    def _answers(self, requests: Any, call: _Call) -> Iterator[list[bytes]]:
        # In a list and by `map`, since this frame would keep an answer, too, while it waits for the next.
        for boxed in map(self._boxed, self._behaviour(requests, call.context)):
            call.record.sent_bytes += len(boxed[0])
            call.must_act()
            yield boxed  # until it is sent
            call.may_wait()

    def _boxed(self, answer: Any) -> list[bytes]:
        return [self._serialize(answer)]

    def _request(self, raw: Iterator[bytes], call: _Call) -> Any:
        data = next(raw, None)
        call.may_wait()
        if data is not None:
            call.record.received_bytes += len(data)
        return parsed(self._parse, data)

    def _requests(self, raw: Iterator[bytes], call: _Call) -> Iterator[Any]:
        # A stream that is answered as it goes knows when it waits for its caller alone.
        call.may_wait()
        return _Requests(raw, self._parse, call, watched=not self._gives_stream)


class _Requests:
    """The messages of a stream, parsed, of which it keeps none."""

    def __init__(self, raw: Iterator[bytes], parse: Callable[[bytes], Any], call: _Call, *, watched: bool) -> None:
        self._raw, self._parse, self._call, self._watched = raw, parse, call, watched

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> Any:
        if self._watched:
            self._call.must_act()
        data = next(self._raw)
        if self._watched:
            self._call.may_wait()
        self._call.record.received_bytes += len(data)
        return parsed(self._parse, data)


class _Call(Wait):
    """A call from the moment that a thread has taken it, and the wait for its caller."""

    __slots__ = ("_idle", "_interceptor", "_path", "context", "record")

    def __init__(self, path: str, context: grpc.ServicerContext, interceptor: CallInterceptor) -> None:
        self.record = _record(context)
        self.context, self._path, self._interceptor, self._idle = context, path, interceptor, interceptor.idle
        self.must_act()
        self._idle.add(self)
        self.record.begin()
        context.set_trailing_metadata(((REQUEST_ID, self.record.request_id),))
        if not context.add_callback(self._end):  # it is over already
            self._end()

    def authenticate(self) -> Identity:
        self.record.identity = self._interceptor.authenticator.identify(self._path, self.context)
        return self.record.identity

    def must_act(self) -> None:
        """The server waits for the caller from now on."""
        self.until = self._idle.deadline()

    def may_wait(self) -> None:
        """The caller waits for the server from now on."""
        self.until = inf

    def has_answered(self, size: int) -> None:
        self.record.sent_bytes += size
        self.record.answered = True
        self.until = self._idle.deadline(_MAX_FETCHING)

    def status_of(self, error: Exception) -> grpc.Status | None:
        if self.record.identity is None:
            self.record.identity = anyone(self.context.peer(), frozenset())  # for the log
        return status_of(error, self.record, self.context)

    def abort(self) -> None:
        log.info("%s of %s is ended: its caller was idle for too long", self.record.method_label, self.context.peer())
        self.context.cancel()

    def _end(self) -> None:
        self._idle.remove(self)
        record = self.record
        record.end(code_at_end(self.context, answered=record.answered, arrived_ns=record.arrived_ns))


def _record(context: grpc.ServicerContext) -> CallRecord:
    try:
        return current_call()
    except PermissionDeniedError as error:
        abort(to_status(error), context)
