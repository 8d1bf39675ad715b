"""AsyncStoredLayer: a layer on the servers of an asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc.aio

from convserve import _rpc, stored
from convserve.layer import Layer
from convserve.result import Losses
from convserve.tensor import Array
from convserve.v1 import layer_service_pb2

if TYPE_CHECKING:
    from convserve._async import AsyncClient


class AsyncStoredLayer(stored.KnownLayer):
    """A layer that the server stores; as `StoredLayer`, awaited."""

    def __init__(self, client: AsyncClient, **known: Any) -> None:
        super().__init__(**known)
        self._client = client
        self._giving = asyncio.Lock()

    async def _give(self, gifts_before: int, timeout: float | None) -> None:
        """Offers the layer to the servers until one lacks it, unless another call has done so since `gifts_before`."""
        await self.weights(timeout=timeout)
        assert self.local is not None  # noqa: S101 (it was read)
        async with self._giving:
            if self.gifts != gifts_before:
                return
            for _ in range(self._client._turns):
                answer = await self._client._put_on_one(self.local, None, timeout, _rpc.RetryRule(attempts=1))
                if not answer.existed:
                    break
            self.gifts += 1

    async def __call__(self, x: Any, *, output_dtype: Any = None, timeout: float | None = None) -> Array:
        """Returns the layer's output for an input; see `Client.conv2d`."""
        return (await self._client.convolve(self, x, output_dtype=output_dtype, timeout=timeout)).output

    async def weights(self, *, timeout: float | None = None) -> tuple[Array, Array | None]:
        """Returns (kernel, bias); see `StoredLayer.weights`."""
        if self.local is None:
            request = layer_service_pb2.ReadWeightsRequest(layer=stored.stored_reference(self, by_digest=True))
            read = self._client._connected_layers().ReadWeights

            async def whole(*arguments: Any, **options: Any) -> list[layer_service_pb2.ReadWeightsResponse]:
                return [message async for message in read(*arguments, **options)]

            answer = await self._client._look_up(whole, request, timeout)
            self.local = Layer(self.config, *stored.weights_of(answer))
        assert self.local.kernel is not None  # noqa: S101 (it was read)
        return self.local.kernel, self.local.bias

    async def to_keras(self, *, timeout: float | None = None) -> Any:
        """Returns a `keras.layers.Conv2D` with this configuration and these weights; see `StoredLayer.to_keras`."""
        return Layer(self.config, *await self.weights(timeout=timeout)).to_keras()

    async def update_weights(
        self, kernel: Any, bias: Any = None, *, timeout: float | None = None
    ) -> tuple[AsyncStoredLayer, Losses]:
        """Makes a layer of this one's configuration and new weights; see `StoredLayer.update_weights`."""
        given = Layer(self.config, kernel, bias)
        update, start = self._client._connected_layers().UpdateWeights, stored.update_start(self, given)
        send = sending(update, start, layer_service_pb2.UpdateWeightsRequest, given)
        answer = await self._client._look_up(send, None, timeout)
        made = AsyncStoredLayer(self._client, **stored.known_parts(answer.layer, self.name, None))
        return made, Losses.from_message(answer.losses)


def sending(method: Any, start: Any, request: Any, layer: Layer | None) -> Callable[..., Any]:
    """Returns a call that sends a start, and a layer's weights if there is one and the server wants them."""

    async def call_once(_: None, timeout: float) -> Any:
        call = method(timeout=timeout)
        try:
            # Where the server ends the call before all is sent, sending fails, and awaiting the call says why.
            with suppress(asyncio.InvalidStateError, grpc.aio.InternalError):
                await call.write(start)
                said = layer and stored.said_of_weights(await call.initial_metadata())
                if layer and said == stored.WANTED:
                    for piece in stored.weight_pieces(layer):
                        await call.write(request(piece=piece))
                if not layer or said:
                    await call.done_writing()
            return await call
        finally:
            call.cancel()  # for when the caller's task is cancelled; after the answer it does nothing

    return call_once
