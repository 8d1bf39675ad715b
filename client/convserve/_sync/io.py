"""What a blocking client does unlike an asyncio one: the names of `_async/io.py`, which says what they raise."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import grpc

from convserve._rpc import channel
from convserve._rpc.forks import calls_under_way
from convserve._rpc.retries import Deadline
from convserve._rpc.streaming import Stream
from convserve.layers.layer import Layer
from convserve.protocol.layer_answers import ReceivedWeights
from convserve.protocol.layer_messages import Upload
from convserve.protocol.results import Result

T = TypeVar("T")

_thread = threading.local()
_LOOK_S = 0.1  # how often one that waits for a lock looks whether it is to end

Lock = threading.Lock
RpcError = grpc.RpcError
ClosedChannelError = ValueError
"""What a call raises whose channel another thread has closed."""
home = os.getpid
"""Where a connection is used: in one process, for a channel does not survive a fork."""
channels = grpc
attempt = calls_under_way.call
"""In which an attempt is made: a fork waits for it."""
connected: weakref.WeakSet[object] = weakref.WeakSet()  # at which nobody looks: these clients survive a fork


def is_cancelled() -> bool:
    """Returns False: nobody cancels a thread."""
    return False


def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Returns `function(*arguments)`: a blocking client has its caller's thread."""
    return function(*arguments)


completed = in_thread


def sleep(seconds: float) -> None:
    """Waits so long; raises CancelledError if another thread ends the calls of this one, before or meanwhile."""
    calls = Calls.of_this_thread()
    if calls is None:
        time.sleep(seconds)
    elif calls.ended.wait(seconds):
        raise concurrent.futures.CancelledError


def check_home(_: object) -> None:
    """Does nothing: a forked process may use a connection beside the one that forked."""


class Calls:
    """Calls, and what is waited for between their attempts, that any thread can end all at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[Any] = set()
        self.ended = threading.Event()

    def take_this_thread(self) -> None:
        """Makes all further calls of this thread some of these."""
        _thread.calls = self

    @staticmethod
    def of_this_thread() -> Calls | None:
        """Returns those that took this thread; None in a caller's own thread."""
        return getattr(_thread, "calls", None)

    @contextmanager
    def under_way(self, call: Any) -> Iterator[None]:
        """Ends a call of gRPC's, or a future, if all are to be ended, as long as the block runs."""
        with self._lock:
            self._under_way.add(call)
        if self.ended.is_set():
            call.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(call)

    def end(self) -> None:
        """Ends what is under way, and whatever begins after it."""
        self.ended.set()
        with self._lock:
            calls = list(self._under_way)
        for call in calls:
            call.cancel()


def _under_way(call: Any) -> AbstractContextManager[None]:
    return (Calls.of_this_thread() or Calls()).under_way(call)


def answer(method: Any, message: Any, deadline: Deadline) -> Any:
    """Makes a call of one message each way, and returns its answer; FutureCancelledError if another thread ended it."""
    calls = Calls.of_this_thread()
    if calls is None:  # the quicker way, but nobody can end it
        return method(message, timeout=deadline.remaining_s())
    call = method.future(message, timeout=deadline.remaining_s())
    with calls.under_way(call):
        return call.result()


def _messages(
    sent: Stream | Upload, metadata: concurrent.futures.Future[Any], failures: list[Exception]
) -> Iterator[Any]:
    yield sent.start
    if sent.wanted and sent.wanted in (metadata.result() or ()):
        try:
            yield from sent.pieces()
        except Exception as failure:
            failures.append(failure)  # gRPC says of it that there was one
            raise


def stream(method: Any, stream: Stream, deadline: Deadline) -> Result:
    """Makes a forward pass' call in pieces."""
    metadata: concurrent.futures.Future[Any] = concurrent.futures.Future()
    failures: list[Exception] = []
    call = method(_messages(stream, metadata, failures), timeout=deadline.remaining_s())
    try:
        with _under_way(call):
            metadata.set_result(call.initial_metadata())
            for message in call:
                stream.take(message)
            return stream.result()
    except grpc.RpcError:
        if failures:
            raise failures.pop() from None
        raise
    finally:
        metadata.cancel()  # if none came, so that nothing waits for it
        call.cancel()  # for when an item failed; after the end it does nothing
        del call  # which is the error where it fails, and whose frames this one would keep


def upload(method: Any, upload: Upload, deadline: Deadline) -> Any:
    """Sends a start, and a layer's weights if there are any and the server wants them; returns the answer."""
    metadata: concurrent.futures.Future[Any] = concurrent.futures.Future()
    failures: list[Exception] = []
    call = method.future(_messages(upload, metadata, failures), timeout=deadline.remaining_s())
    try:
        with _under_way(call):
            if upload.wanted:
                metadata.set_result(call.initial_metadata())
            return call.result()
    except grpc.RpcError:
        if failures:
            raise failures.pop() from None
        raise
    finally:
        metadata.cancel()
        call.cancel()  # for when the caller is interrupted; after the answer it does nothing
        del call  # as in `stream`


def received(call: Any, weights: ReceivedWeights) -> Layer:
    """Returns the layer whose weights a call's stream brings."""
    try:
        with _under_way(call):
            for message in call:
                weights.take(message)
            return weights.result()
    finally:
        call.cancel()  # for when a message was refused; after the end it does nothing


@contextmanager
def held(lock: threading.Lock, deadline: Deadline) -> Iterator[None]:
    """Holds a lock; raises DeadlineExceededError if others hold it for too long."""
    calls = Calls.of_this_thread()
    while not lock.acquire(timeout=min(deadline.remaining_s(), _LOOK_S)):
        if calls is not None and calls.ended.is_set():
            raise concurrent.futures.CancelledError
        if not deadline.remaining_s():
            raise deadline.exceeded()
    try:
        yield
    finally:
        lock.release()


def look_up(host: str, port: str, deadline: Deadline) -> tuple[str, ...]:
    """Returns gRPC's names of the addresses that a host name leads to."""
    future = channel.look_up(host, port)
    try:
        with _under_way(future):
            return future.result(deadline.remaining_s())
    except TimeoutError:
        raise deadline.exceeded() from None
