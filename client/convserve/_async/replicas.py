"""The LayerService of every server that an asyncio client's target names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc.aio

from convserve._rpc import channel as _channel
from convserve._rpc import retries
from convserve._rpc.credentials import Access
from convserve.errors import ConvserveError
from convserve.protocol import layer_messages
from convserve.v1 import layer_service_pb2, layer_service_pb2_grpc

T = TypeVar("T")


class LayerServers:
    """Each server by itself; see `_sync_servers.LayerServers`."""

    def __init__(self, channel: grpc.aio.Channel, target: str, access: Access) -> None:
        """Prepares for a channel to a target of gRPC's, and for such channels to each of its servers."""
        self._access = access
        self._only = layer_service_pb2_grpc.LayerServiceStub(channel)  # type: ignore[no-untyped-call]
        self._target = target
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def put(self, given: layer_messages.Sent, timeout: float) -> Any:
        """Puts a layer on the first server that answers."""
        return await self._first(lambda server, deadline: _send(server.PutLayer, given, deadline), timeout)

    async def offer(self, given: layer_messages.Sent, timeout: float) -> bool:
        """Puts a layer on every server that does not hold it; returns whether all of them keep it."""

        async def is_kept(server: Any, deadline: retries.Deadline) -> bool:
            try:
                await _send(server.PutLayer, given, deadline)
            except (grpc.aio.AioRpcError, ConvserveError) as failure:
                retries.check_cannot_keep(failure)
                return False
            return True

        return all(await self._every(is_kept, timeout))

    async def update(self, given: layer_messages.Sent, timeout: float) -> Any:
        """Updates the weights of a layer on the first server that holds it."""
        return await self._first(lambda server, deadline: _send(server.UpdateWeights, given, deadline), timeout)

    async def get(self, request: layer_service_pb2.GetLayerRequest, timeout: float) -> Any:
        """Returns the description of the first server that holds a layer."""
        return await self._first(
            lambda server, deadline: server.GetLayer(request, timeout=deadline.remaining_s()), timeout
        )

    async def read(self, request: layer_service_pb2.ReadWeightsRequest, timeout: float) -> list[Any]:
        """Returns the messages with a layer's weights, from the first server that holds it."""

        # As a list, so that a stream that breaks is read again like any call.
        async def messages(server: Any, deadline: retries.Deadline) -> list[Any]:
            return [each async for each in server.ReadWeights(request, timeout=deadline.remaining_s())]

        return await self._first(messages, timeout)

    async def delete(self, request: layer_service_pb2.DeleteLayerRequest, timeout: float) -> None:
        """Deletes a layer or a name on every server."""
        await self._every(lambda server, deadline: server.DeleteLayer(request, timeout=deadline.remaining_s()), timeout)

    async def all_layers(self, request: layer_service_pb2.ListLayersRequest, timeout: float) -> list[list[Any]]:
        """Returns every server's layers, all pages of each."""

        async def pages(server: Any, deadline: retries.Deadline) -> list[Any]:
            found: list[Any] = []
            following = layer_service_pb2.ListLayersRequest()
            following.CopyFrom(request)
            while True:
                page = await server.ListLayers(following, timeout=deadline.remaining_s())
                found += page.layers
                following.page_token = page.next_page_token
                if not following.page_token:
                    return found

        return await self._every(pages, timeout)

    async def find_missing(
        self, requests: Sequence[layer_service_pb2.FindMissingLayersRequest], timeout: float
    ) -> set[bytes]:
        """Returns the digests that no server holds."""

        async def missing(server: Any, deadline: retries.Deadline) -> set[bytes]:
            found: set[bytes] = set()
            for each in requests:
                answer = await server.FindMissingLayers(each, timeout=deadline.remaining_s())
                found.update(answer.missing_digests)
            return found

        return set.intersection(*await self._every(missing, timeout))

    async def close(self) -> None:
        """Closes the connections."""
        for each in self._channels.values():
            await each.close()

    async def _first(self, ask: Callable[[Any, retries.Deadline], Awaitable[T]], timeout: float) -> T:
        return (await self._answers(ask, timeout, every=False))[0]

    async def _every(self, ask: Callable[[Any, retries.Deadline], Awaitable[T]], timeout: float) -> list[T]:
        return await self._answers(ask, timeout, every=True)

    async def _answers(
        self, ask: Callable[[Any, retries.Deadline], Awaitable[T]], timeout: float, *, every: bool
    ) -> list[T]:
        deadline = retries.Deadline(timeout)
        answers: list[T] = []
        why_not: ConvserveError | None = None
        for stub in await self._stubs():
            try:
                answers.append(await ask(stub, deadline))
            except (grpc.aio.AioRpcError, ConvserveError) as failure:
                why_not = retries.skip_replica(failure, why_not)
                continue
            if not every:
                break
        if not answers and why_not:
            raise why_not
        return answers

    async def _stubs(self) -> list[Any]:
        name = _channel.name_to_resolve(self._target)
        if name is None:
            addresses = _channel.addresses(self._target)
        else:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(*name, type=socket.SOCK_STREAM)
            except OSError:  # gRPC may know more of the name, or will say what is wrong
                found = []
            addresses = _channel.resolved(found)
        if len(addresses) < 2:
            return [self._only]
        channels = map(self._channel_to, addresses)
        return [layer_service_pb2_grpc.LayerServiceStub(each) for each in channels]  # type: ignore[no-untyped-call]

    def _channel_to(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = self._access.async_channel(address)
        return self._channels[address]


async def _send(method: Any, given: layer_messages.Sent, deadline: retries.Deadline) -> Any:
    """Sends a start, and a layer's weights if there are any and the server wants them; returns the answer."""
    call = method(timeout=deadline.remaining_s())
    try:
        # Where the server ends the call before all is sent, sending fails, and awaiting the call says why.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
            await call.write(given.start)
            said = layer_messages.negotiated(await call.initial_metadata()) if given.has_weights else None
            if said == layer_messages.WANTED:
                for piece in given.pieces():
                    await call.write(piece)
            if said or not given.has_weights:
                await call.done_writing()
        return await call
    finally:
        call.cancel()  # for when the caller's task is cancelled; after the answer it does nothing
