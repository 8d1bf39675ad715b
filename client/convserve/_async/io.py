"""What an asyncio client does otherwise than a blocking one: the names of `_sync/io.py`, awaited.

The modules beside this one, but `map`, are written for asyncio, and `client/unasync.py` makes those in `_sync` of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from convserve._rpc import channel
from convserve._rpc.forks import calls_under_way
from convserve._rpc.retries import Deadline
from convserve._rpc.streaming import Stream
from convserve.errors import InvalidRequestError
from convserve.layers.layer import Layer
from convserve.protocol.layer_answers import ReceivedWeights
from convserve.protocol.layer_messages import Upload
from convserve.protocol.results import Result

T = TypeVar("T")

Lock = asyncio.Lock
RpcError = grpc.aio.AioRpcError
ClosedChannelError = (grpc.aio.UsageError, asyncio.CancelledError)
"""What a call raises where the channel was closed between two steps of it, and within one."""
sleep = asyncio.sleep
in_thread = asyncio.to_thread
home = asyncio.get_running_loop
"""Where a connection is used: in one event loop at a time, to which its channel belongs."""
channels = grpc.aio
attempt = nullcontext
"""In which an attempt is made: a fork waits for none, as gRPC works in no fork beside a connected asyncio client."""
connected = calls_under_way.asyncio_clients


def is_cancelled() -> bool:
    """Returns whether the caller's task is to end, and not just a call of it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def completed(function: Callable[..., T], *arguments: Any) -> T:
    """Returns `function(*arguments)`, in a thread whose end a caller waits for however often it is cancelled."""
    running = home().run_in_executor(None, function, *arguments)  # no task, which the end of a loop would cancel
    try:
        await asyncio.wait([running])
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        running.exception()  # of which nobody is to hear
        raise  # now that what it writes to is the caller's again
    return running.result()


def check_home(loop: asyncio.AbstractEventLoop | None) -> None:
    """Raises InvalidRequestError if a connection is used now in another event loop than the running one."""
    if loop not in (None, home()) and loop.is_running():
        received = "a call in another loop than the one that uses it now: make a client for each"
        raise InvalidRequestError.for_field("client", "one event loop at a time", received)


async def answer(method: Any, message: Any, deadline: Deadline) -> Any:
    """Makes a call of one message each way, and returns its answer; grpc.RpcError if it fails, as everything here."""
    return await method(message, timeout=deadline.remaining_s())


async def stream(method: Any, stream: Stream, deadline: Deadline) -> Result:
    """Makes a forward pass' call in pieces; raises grpc.RpcError if it fails and ConvserveError if an item did."""
    call = method(timeout=deadline.remaining_s())
    sending = asyncio.create_task(_send(call, stream))
    try:
        message: Any
        while (message := await call.read()) is not grpc.aio.EOF:
            stream.take(message)
        return stream.result()
    except asyncio.CancelledError as ended:
        _raise_failure(sending, ended)
        raise
    finally:
        sending.cancel()
        call.cancel()  # for when an item failed; after the end it does nothing
        del call, sending  # which the frames of an error would hold, and keep a closed channel connected


async def _send(call: Any, sent: Stream | Upload) -> None:
    # Where the server ends the call before all is sent, sending fails, and the answer says why.
    try:
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
            await call.write(sent.start)
            if sent.wanted and sent.wanted in tuple(await call.initial_metadata() or ()):
                for piece in sent.pieces():
                    await call.write(piece)
            await call.done_writing()
    except Exception:
        call.cancel()  # which would be waited for until its deadline
        raise
    finally:
        del call  # as in `stream`


def _raise_failure(sending: asyncio.Task[None], ended: asyncio.CancelledError) -> None:
    """Raises what failed in sending, if that and not the caller has ended a call."""
    try:
        if sending.done() and not sending.cancelled() and not is_cancelled():
            ended.__traceback__ = None  # whose frames hold the call
            sending.result()
    finally:
        del sending  # which holds what is raised


async def upload(method: Any, upload: Upload, deadline: Deadline) -> Any:
    """Sends a start, and a layer's weights if there are any and the server wants them; returns the answer."""
    call = method(timeout=deadline.remaining_s())
    # In a task of its own: where the call ends before it was sent, gRPC lets what writes to it wait for ever.
    sending = asyncio.create_task(_send(call, upload))
    try:
        return await call
    except asyncio.CancelledError as ended:
        _raise_failure(sending, ended)
        raise
    finally:
        sending.cancel()
        call.cancel()  # for when the caller's task is cancelled; after the answer it does nothing
        del call, sending  # as in `stream`


async def received(call: Any, weights: ReceivedWeights) -> Layer:
    """Returns the layer whose weights a call's stream brings."""
    try:
        async for message in call:
            weights.take(message)
        return weights.result()
    finally:
        call.cancel()  # for when a message was refused; after the end it does nothing
        del call  # as in `stream`


@asynccontextmanager
async def held(lock: asyncio.Lock, deadline: Deadline) -> AsyncIterator[None]:
    """Holds a lock; raises DeadlineExceededError if others hold it for too long."""
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            await lock.acquire()
    except TimeoutError:
        raise deadline.exceeded() from None
    try:
        yield
    finally:
        lock.release()


async def look_up(host: str, port: str, deadline: Deadline) -> tuple[str, ...]:
    """Returns gRPC's names of the addresses that a host name leads to.

    Raises:
        DeadlineExceededError: If the resolver does not answer in time.
    """
    try:
        future = asyncio.wrap_future(channel.look_up(host, port))
        return await asyncio.wait_for(future, deadline.remaining_s())
    except TimeoutError:
        raise deadline.exceeded() from None
