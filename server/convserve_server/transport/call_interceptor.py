"""What every call passes through, so that no method can forget it.

    a call arrives -> its record begins -> a thread takes it -> who is it? may it? -> its request is received and parsed
        -> the method -> its answer is written -> the answer is sent, the record ends

An exception on the way becomes a status (call_errors.py). A caller that sends or fetches nothing for too long while the
server only waits for it has its call ended. For that a single request is received like a stream of one, which on the
wire it is: gRPC's own way to receive it would keep the thread for as long as the caller likes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import grpc

from convserve.errors import ConvserveError, PermissionDeniedError
from convserve.protocol.status import to_status
from convserve_server.auth.authenticator import Authenticator, check, permissions_for
from convserve_server.auth.identity import Identity, anyone
from convserve_server.observability.call_record import REQUEST_ID, CallRecord, CallRecorder, current_call
from convserve_server.scheduling.thread_pool import check_thread
from convserve_server.transport.call_errors import abort, parsed, status_of
from convserve_server.transport.connections import Connections
from convserve_server.transport.grpc_private import code_at_end, is_non_blocking
from convserve_server.transport.idle_timeouts import IdleTimeouts, Wait
from convserve_server.transport.message_bounds import MessageBound
from convserve_server.transport.stream_slots import ReceivingSlots, StreamSlots

log = logging.getLogger("convserve")

_MAX_FETCHING = 10  # times as long as for one piece: a whole answer may be fetched for so long

_NO_SLOT = nullcontext()
_UNKNOWN_MESSAGES = MessageBound(0)

Handler = Any  # grpc.RpcMethodHandler: gRPC types its four behaviours as optional, of which one is always there


def _no_method(request: object, context: grpc.ServicerContext) -> object:
    raise NotImplementedError


_NO_METHOD: Handler = grpc.unary_unary_rpc_method_handler(_no_method)


@dataclass
class CallInterceptor(grpc.ServerInterceptor):
    """Wraps each method once. It is to be the only interceptor.

    A call whose requests or answers are a stream keeps a slot, and one with a single request has one until that has
    come. There are fewer of both together than threads: so callers that stall cannot take the threads of other calls.
    """

    recorder: CallRecorder
    authenticator: Authenticator
    slots: StreamSlots
    receiving: ReceivingSlots
    idle: IdleTimeouts
    bounds: Mapping[str, MessageBound]  # of requests, by the paths of their methods
    connections: Connections
    _wrapped: dict[str, tuple[Handler, Handler]] = field(default_factory=dict)  # by path: a handler, and it wrapped

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the method's handler, wrapped."""
        self.recorder.arrivals += 1
        path = handler_call_details.method
        handler = continuation(handler_call_details)
        is_watch = handler is not None and is_non_blocking(handler) and not permissions_for(path)
        if not is_watch:
            self.recorder.arrived(path, handler_call_details.invocation_metadata or ())
        if handler is None:
            return _Method(_NO_METHOD, path, self).handler()  # not kept: such paths are any number
        known, wrapped = self._wrapped.get(path, (None, None))
        if known is not handler:
            method = _Method(handler, path, self)
            wrapped = method.watch_handler() if is_watch else method.handler()
            self._wrapped[path] = handler, wrapped
        return wrapped


class _Method:
    """A method, and its handlers for gRPC, which gives them messages unparsed."""

    def __init__(self, handler: Handler, path: str, interceptor: CallInterceptor) -> None:
        self._path, self._interceptor = path, interceptor
        self._behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        self._takes_stream, self._gives_stream = handler.request_streaming, handler.response_streaming
        self._reads_items = getattr(self._behaviour, "reads_items", False)
        self._parse = handler.request_deserializer or bytes
        self._bound = interceptor.bounds.get(path, _UNKNOWN_MESSAGES)
        self._serialize = handler.response_serializer or bytes

    def handler(self) -> Handler:
        if self._gives_stream:
            # gRPC would keep the last answer while it waits for the next: it is given a list, and empties it.
            return grpc.stream_stream_rpc_method_handler(self.many_answers, None, list.pop)
        return grpc.stream_unary_rpc_method_handler(self.one_answer, None, None)

    def watch_handler(self) -> Handler:
        watch: Any = partial(self.watch)
        watch.experimental_non_blocking = True  # as `is_non_blocking` has it
        return grpc.stream_stream_rpc_method_handler(watch, None, self._serialize)

    def one_answer(self, raw: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        call = _Call(context, self._interceptor, gives_stream=self._gives_stream)
        try:
            with self._identify(call):
                answer = self._behaviour(self._receive(raw, call), context)
            data: bytes = b"" if answer is None else self._serialize(answer)  # None: it has set a code instead
            call.record.sent_bytes += len(data)
            call.record.answered = True
            call.fetching.until = self._interceptor.idle.deadline(_MAX_FETCHING)
            self._interceptor.connections.ended(call.peer, call.record)
            return data
        except Exception as error:
            status = status_of(error, call.record, context)
        return abort(status, context)

    def many_answers(self, raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[list[bytes]]:
        call = _Call(context, self._interceptor, gives_stream=self._gives_stream)
        try:
            with self._identify(call):
                yield from self._answers(self._receive(raw, call), call)
            call.record.answered = True
            return
        except Exception as error:
            status = status_of(error, call.record, context)
        abort(status, context)

    def _identify(self, call: _Call) -> AbstractContextManager[None]:
        """Notes who calls, or raises if they may not; returns the slot that the call is to keep."""
        check_thread()
        identity = call.record.identity = self._interceptor.authenticator.identify(self._path, call.context)
        self._interceptor.connections.identified(call.peer, identity)
        check(identity, self._path)  # once the record, and so the log, has its name
        return self._interceptor.slots.acquire(identity) if self._takes_stream or self._gives_stream else _NO_SLOT

    def _answers(self, requests: Any, call: _Call) -> Iterator[list[bytes]]:
        # In a list and by `map`, since this frame would keep an answer, too, while it waits for the next.
        for boxed in map(self._boxed, self._behaviour(requests, call.context)):
            call.record.sent_bytes += len(boxed[0])
            call.fetching.until = self._interceptor.idle.deadline()
            yield boxed  # until it is sent
            call.fetching.until = inf

    def _boxed(self, answer: Any) -> list[bytes]:
        return [self._serialize(answer)]

    def _receive(self, raw: Iterator[bytes], call: _Call) -> Any:
        """Returns the request, or the stream of them."""
        if self._behaviour is _no_method:
            raise NotImplementedError  # whatever its request would be
        if self._takes_stream:
            return self._requests(raw, call)
        assert call.record.identity is not None  # noqa: S101 (`_identify` has set it)
        data = self._one_message(raw, call.record.identity, call.receiving)
        if data is not None:
            call.record.received_bytes += len(data)
        return parsed(self._parse, data, self._bound)

    def _one_message(self, raw: Iterator[bytes], identity: Identity, wait: Wait) -> bytes | None:
        """Returns the only message of a call, for which it has a slot until it has come."""
        slots = self._interceptor.receiving
        slots.take(identity, wait)
        try:
            return next(raw, None)
        finally:
            slots.give(identity, wait)
            wait.until = inf

    def watch(self, raw: Iterator[bytes], context: grpc.ServicerContext, send_response: Callable[[Any], None]) -> None:
        """Begins a watch of the health, which keeps a thread only until its first answer is sent, and has no record."""
        wait = Wait(context.cancel, self._interceptor.idle.deadline())
        self._interceptor.idle.add(wait)
        try:
            check_thread()
            data = self._one_message(raw, anyone(context.peer()), wait)
            wait.until = self._interceptor.idle.deadline()  # for its caller to fetch the first answer
            self._behaviour(parsed(self._parse, data, self._bound), context, send_response)
            return
        except ConvserveError as error:
            status = to_status(error)
        finally:
            self._interceptor.idle.remove(wait)
        abort(status, context)

    def _requests(self, raw: Iterator[bytes], call: _Call) -> Iterator[Any]:
        """Yields the messages of a stream, parsed, of which it keeps none."""
        while (data := next(raw, None)) is not None:
            call.receiving.until = inf
            call.record.received_bytes += len(data)
            boxed = [parsed(self._parse, data, self._bound)]
            del data
            yield boxed.pop()
            if not self._reads_items:  # which wait themselves
                call.receiving.until = self._interceptor.idle.deadline()
        call.receiving.until = inf


class _Call:
    """A call, with the waits for its caller: a stream in both directions has two, as one that sends must fetch, too."""

    __slots__ = ("_connections", "_idle", "context", "fetching", "peer", "receiving", "record")

    def __init__(self, context: grpc.ServicerContext, interceptor: CallInterceptor, *, gives_stream: bool) -> None:
        try:
            self.record = current_call()
        except PermissionDeniedError as error:
            abort(to_status(error), context)
        self.context, self._idle, self._connections = context, interceptor.idle, interceptor.connections
        idle = self._idle
        self.receiving = self.fetching = Wait(partial(_abort_idle, self.record, context), idle.deadline())
        idle.add(self.receiving)
        if gives_stream:
            self.fetching = Wait(self.receiving.abort)
            idle.add(self.fetching)
        self.record.begin()
        self.peer = context.peer()
        self._connections.began(self.peer, self.record)
        context.set_trailing_metadata(((REQUEST_ID, self.record.request_id),))
        if not context.add_callback(self._end):  # it is over already
            self._end()

    def _end(self) -> None:
        self._idle.remove(self.receiving)
        if self.fetching is not self.receiving:
            self._idle.remove(self.fetching)
        self._connections.ended(self.peer, self.record)
        record = self.record
        record.end(code_at_end(self.context, answered=record.answered, arrived_ns=record.arrived_ns))


def _abort_idle(record: CallRecord, context: grpc.ServicerContext) -> None:
    log.info("%s of %s is ended: its caller was idle for too long", record.method_label, context.peer())
    context.cancel()
