"""Unary methods whose calls are answered on gRPC's core, without the threads between it and gRPC's own Python server.

That server takes a call in one thread, hands it to another, and for each message back and forth again, which costs a
small call more than all that is done for it. Here a thread that waits for events handles what the event brings:

    gRPC's core --event--> a waiting thread --> arrived: who is it, and may it? --> parse --> method
                                 ^                                                              |
                                 +---------- waits again <--- leaves it to be computed <--------+
                                                                           |
                                         any thread: answer, or status <---+

One thread always waits for events, so that the end of a call is heard whatever the others do. As in gRPC's own server,
only as many calls have their requests received at once as there may be threads: else whoever opens enough calls could
fill the memory with what it sends.

The core's Cython module is no public interface of gRPC, so that a version of it may lack what is used here: then, and
unless the setting asks for them, the methods are the ordinary server's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from convserve_server.auth.identity import CallContext
from convserve_server.direct_call import DirectCall
from convserve_server.observability.call_record import Metadata, current_call
from convserve_server.observability.interceptor import ObservingInterceptor, begin
from convserve_server.transport.call_interceptor import abort_idle, parsed, status_of, watch_fetching
from convserve_server.transport.idle_timeouts import IdleTimeouts

log = logging.getLogger("convserve")

_ARRIVALS = 4  # calls of a method that the core may have handed over and no thread has taken yet
_MAX_WAITING = 2  # threads that wait for events; one more ends

Reply = Callable[[Callable[[], bytes]], None]
"""Answers a call with what a function returns, or the error that it raises. It is called once, by any thread."""
DirectMethod = Callable[[Any, CallContext, Reply], None]
"""A method: is given a request, its call, and how to reply, now or later. What it raises is replied."""


class Gate(Protocol):
    """Decides who may call."""

    def check(self, method: str, metadata: Metadata) -> None:
        """Notes in this context who calls.

        Raises:
            ConvserveError: If it may not.
        """


class _Method(NamedTuple):
    path: str
    parse: Callable[[bytes], Any]
    answer: DirectMethod


class DirectCalls:
    """The methods, and the threads that answer their calls."""

    def __init__(
        self,
        server: grpc.Server,
        observing: ObservingInterceptor,
        gates: Sequence[Gate],
        silence: IdleTimeouts,
        most_threads: int,
    ) -> None:
        """Prepares to take calls of a server that is not started yet.

        Args:
            server: The server, which has all other methods.
            observing: Makes the calls' records.
            gates: Decide who may call, in this order.
            silence: Watches callers that are waited for.
            most_threads: How many threads there may be.

        Raises:
            AttributeError: If this version of gRPC has no such core.
        """
        self._core, self._queue = server._state.server, cygrpc.CompletionQueue()  # type: ignore[attr-defined]
        self._register, self._request_call = self._core.register_method, self._core.request_registered_call
        self._core.register_completion_queue(self._queue)
        self._observing, self._gates, self._silence, self._most = observing, gates, silence, most_threads
        self._methods: list[_Method] = []
        self._open: set[DirectCall] = set()  # one step of Python's adds and discards, so it needs no lock
        self._lock = threading.Lock()  # of what follows
        self._threads = self._waiting = 0
        self._work: deque[Callable[[], None]] = deque()  # that no thread could be had for
        self._inside = 0
        self._outside: deque[tuple[_Method, DirectCall]] = deque()  # whose requests are not received yet

    def add(self, path: str, parse: Callable[[bytes], Any], answer: DirectMethod) -> None:
        """Adds a method, "/package.Service/Method", which the server itself must not have registered."""
        self._register(path)
        self._methods.append(_Method(path, parse, answer))

    def start(self) -> None:
        """Takes calls from now on; to be called once the server is started."""
        for method in self._methods:
            for _ in range(_ARRIVALS):
                self._request(method)
        self._threads = self._waiting = 1
        self._start_thread()

    def stop(self, timeout_s: float) -> bool:
        """Ends the threads, once the server has stopped. Returns whether all calls were over within some seconds."""
        until = time.monotonic() + timeout_s
        while self._open:
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        self._queue.shutdown()
        return True

    # Threads

    def _start_thread(self) -> None:
        threading.Thread(target=self._wait, name=f"direct_{self._threads}", daemon=True).start()

    def _wait(self) -> None:
        while not self._is_one_too_many():
            try:
                event = self._queue.poll()
                if event.completion_type == cygrpc.CompletionType.queue_shutdown:
                    return
                event.tag(event)
                del event  # before the wait: it may be the last of a call
            except Exception:
                log.exception("an event of gRPC's core cannot be handled")

    def _is_one_too_many(self) -> bool:
        with self._lock:
            if self._waiting <= _MAX_WAITING:
                return False
            self._waiting -= 1
            self._threads -= 1
            return True

    def _run_apart(self, work: Callable[[], None]) -> None:
        """Runs what may take long, while another thread waits for events; or has another run it."""
        following: Callable[[], None] | None = work if self._leaves_waiting(work) else None
        while following is not None:
            try:
                following()
            except Exception:  # the next is run all the same
                log.exception("a direct call cannot be handled")
            with self._lock:
                following = self._work.popleft() if self._work else None
                if following is None:
                    self._waiting += 1

    def _leaves_waiting(self, work: Callable[[], None], may_start: bool = True) -> bool:
        """Returns whether this thread is to run something now, as another waits for events; else another will do it."""
        with self._lock:
            may_start = may_start and self._threads < self._most
            if self._waiting > 1 or (self._threads == 1 and not may_start):
                self._waiting -= 1
                return True
            if not may_start:  # the others are busy, and look for work when they are not
                self._work.append(work)
                return False
            self._threads += 1  # which waits in this one's place
        try:
            self._start_thread()
        except RuntimeError:  # the system starts none
            with self._lock:
                self._threads -= 1
            return self._leaves_waiting(work, may_start=False)
        return True

    # Calls

    def _request(self, method: _Method) -> None:
        with suppress(ValueError):  # it is being shut down
            self._request_call(self._queue, self._queue, method.path, partial(self._arrived, method))

    def _arrived(self, method: _Method, event: Any) -> None:
        if not event.success:  # as none comes any more
            return
        self._request(method)
        call = DirectCall(event, self._open.discard)
        self._open.add(call)
        try:
            if call.variables.run(self._begin, method, call):
                self._enter(method, call)
        finally:
            call.begun()

    def _begin(self, method: _Method, call: DirectCall) -> bool:
        """Notes a call. Returns whether it may be made; else it is answered."""
        metadata = call.invocation_metadata()
        call.record = self._observing.arrived(method.path, metadata)
        refusal: Exception | None = None
        try:
            for gate in self._gates:
                gate.check(method.path, metadata)
        except Exception as error:
            refusal = error.with_traceback(None)  # in which this frame is
        begin(call.record, call)
        if refusal is not None:
            self._fail(refusal, method, call)
        return refusal is None

    def _enter(self, method: _Method, call: DirectCall) -> None:
        """Receives a call's request, now or when others are over."""
        with self._lock:
            if self._inside == self._most:
                self._outside.append((method, call))
                return
            self._inside += 1
        self._receive(method, call)

    def _leave(self) -> None:
        """Lets the next call in."""
        while True:
            with self._lock:
                if not self._outside:
                    self._inside -= 1
                    return
                method, call = self._outside.popleft()
            if self._receive(method, call):
                return

    def _receive(self, method: _Method, call: DirectCall) -> bool:
        """Receives a call's request. Returns False if the call is over."""
        wait = self._silence.waiting(lambda: abort_idle(method.path, call))

        def over() -> None:
            wait.forget()
            self._leave()

        if not call.add_callback(over):
            wait.forget()
            return False

        def received(data: bytes | None) -> None:
            wait.forget()
            if data is None:  # told by a thread that is none of these
                call.variables.run(self._handle, method, call, data)
            else:
                self._run_apart(lambda: call.variables.run(self._handle, method, call, data))

        call.receive(received)
        return True

    def _handle(self, method: _Method, call: DirectCall, data: bytes | None) -> None:
        current_call().received_bytes += len(data or b"")
        variables = call.variables.copy()  # as these are in use where it is replied to at once

        def reply(make: Callable[[], bytes]) -> None:
            variables.run(self._reply, method, call, make)

        try:
            method.answer(parsed(method.parse, data), call, reply)
        except Exception as error:
            self._fail(error, method, call)

    def _reply(self, method: _Method, call: DirectCall, make: Callable[[], bytes]) -> None:
        try:
            data = make()
        except Exception as error:
            self._fail(error, method, call)
            return
        record = current_call()
        record.sent_bytes += len(data)
        record.answered = True
        watch_fetching(self._silence, method.path, call)
        call.answer(data)

    def _fail(self, error: Exception, method: _Method, call: DirectCall) -> None:
        status = status_of(error, method.path, call)
        if status is not None:
            call.fail(status)


def add_methods(
    server: grpc.Server,
    service: str,
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]],
    direct: DirectCalls | None,
    answers: Mapping[str, DirectMethod],
) -> None:
    """Adds a service's methods to a server.

    Args:
        server: The server.
        service: The service's name.
        handlers: All methods by their names.
        direct: Where there are direct calls.
        answers: How methods are answered there.
    """
    if direct is not None:
        for name, answer in answers.items():
            parse = handlers.pop(name).request_deserializer
            assert parse is not None  # noqa: S101 (each has one)
            direct.add(f"/{service}/{name}", parse, answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    # So that they are found by gRPC's core, and not by asking one service after the other.
    server.add_registered_method_handlers(service, handlers)
