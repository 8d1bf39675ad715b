"""What an asyncio client does otherwise than a blocking one: the names of `_sync/io.py`, awaited.

The modules beside this one, but `map`, are written for asyncio, and `client/unasync.py` makes those in `_sync` of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from convserve._rpc import channel, retries, streaming
from convserve._rpc.credentials import Access
from convserve._rpc.forks import calls_under_way
from convserve._rpc.retries import Deadline
from convserve.errors import FieldViolation, InvalidRequestError
from convserve.protocol import layer_messages, pieces
from convserve.protocol.results import Result

T = TypeVar("T")

Lock = asyncio.Lock
RpcError = grpc.aio.AioRpcError
ClosedChannelError = grpc.aio.UsageError
"""What a call raises where the channel was closed between two steps of it."""
sleep = asyncio.sleep
in_thread = asyncio.to_thread


def open_channel(access: Access, address: str) -> Any:
    """Returns a channel to the target, or to one of the servers that it leads to."""
    return access.async_channel(address)


class Home:
    """Where a connection can be used: in one event loop at a time, of which its channel is."""

    def __init__(self) -> None:
        """Starts without a loop."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def is_here(self) -> bool:
        """Returns whether the running loop is the one."""
        return self._loop is asyncio.get_running_loop()

    def check(self) -> None:
        """Raises InvalidRequestError if another loop uses the connection now."""
        if self._loop is not None and not self.is_here() and self._loop.is_running():
            text = (
                "Expected one event loop at a time. "
                "Received a call in another loop than the one that uses it now: make a client for each."
            )
            raise InvalidRequestError(FieldViolation("client", text))

    def enter(self, connection: object) -> None:
        """Makes the running loop the one."""
        self.check()
        self._loop = asyncio.get_running_loop()
        calls_under_way.asyncio_clients.add(connection)

    def leave(self, connection: object) -> None:
        """Notes that the connection is closed."""
        calls_under_way.asyncio_clients.discard(connection)


class Call(retries.Call):
    """A call's attempts. A fork does not wait for them, as gRPC works in no fork beside a connected asyncio client."""

    def __enter__(self) -> None:
        """Begins an attempt."""

    def __exit__(self, *_: object) -> None:
        """Ends it."""


async def answer(method: Any, message: Any, deadline: Deadline) -> Any:
    """Makes a call of one message each way, and returns its answer; grpc.RpcError if it fails, as everything here."""
    return await method(message, timeout=deadline.remaining_s())


async def stream(method: Any, outgoing: streaming.Outgoing, incoming: streaming.Incoming, deadline: Deadline) -> Result:
    """Makes a forward pass' call in pieces.

    Raises:
        grpc.RpcError: If it fails.
        ConvserveError: If an item did.
    """
    call = method(timeout=deadline.remaining_s())
    sending = asyncio.create_task(_send(call, outgoing))
    try:
        message: Any
        while (message := await call.read()) is not grpc.aio.EOF:
            incoming.take(message)
        return incoming.result()
    finally:
        sending.cancel()
        call.cancel()  # for when an item failed; after the end it does nothing


async def _send(call: Any, outgoing: streaming.Outgoing) -> None:
    # Where the server ends the call before all is sent, sending fails, and reading says why.
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
        await call.write(outgoing.start())
        if pieces.is_accepted(await call.initial_metadata()):
            for piece in outgoing.pieces():
                await call.write(piece)
            await call.done_writing()


async def upload(method: Any, upload: layer_messages.Upload, deadline: Deadline) -> Any:
    """Sends a start, and a layer's weights if there are any and the server wants them; returns the answer."""
    call = method(timeout=deadline.remaining_s())
    try:
        # Where the server ends the call before all is sent, sending fails, and awaiting the call says why.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
            await call.write(upload.start)
            wanted = layer_messages.upload_answer(await call.initial_metadata()) if upload.layer else None
            if wanted == layer_messages.SEND_WEIGHTS:
                for piece in upload.pieces():
                    await call.write(piece)
            if wanted or not upload.layer:
                await call.done_writing()
        return await call
    finally:
        call.cancel()  # for when the caller's task is cancelled; after the answer it does nothing


async def read_all(messages: AsyncIterable[T]) -> list[T]:
    """Returns a stream's messages."""
    return [message async for message in messages]


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
