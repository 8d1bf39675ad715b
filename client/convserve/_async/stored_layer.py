"""AsyncStoredLayer: a layer on the servers of an asyncio client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from convserve._rpc import retries
from convserve.errors import InvalidArgumentError, LayerNotFoundError, UnavailableError
from convserve.layers.layer import Layer
from convserve.protocol import layer_messages, stored_layers
from convserve.protocol.results import Losses
from convserve.tensors.codec import Array
from convserve.v1 import layer_service_pb2

if TYPE_CHECKING:
    from convserve._async.client import AsyncClient


class AsyncStoredLayer(stored_layers.StoredLayerBase):
    """A layer that the server stores; as `StoredLayer`, awaited."""

    def __init__(self, client: AsyncClient, **known: Any) -> None:
        super().__init__(**known)
        self._client = client
        self._giving = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # of that lock

    async def _give(self, gifts_before: int, deadline: retries.Deadline) -> bool:
        """Gives the layer to every server that lacks it, unless another call has done so since `gifts_before`.

        Returns whether all of them can keep it.
        """
        lock = self._lock()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await lock.acquire()
        except TimeoutError:
            raise deadline.exceeded() from None
        try:
            if self.gifts != gifts_before:
                return True
            offer, sent = (
                self._client._connected_layers().offer,
                layer_messages.sent_put(await self._fetch(deadline), None),
            )
            kept: bool = await self._client._call(offer, sent, deadline, retries.RetryRule(attempts=1))
            self.gifts += 1
            return kept
        except UnavailableError:
            return False
        finally:
            lock.release()

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a task that held it may have ended with its loop, or stayed before a fork
            self._giving, self._loop = asyncio.Lock(), loop
        return self._giving

    async def _fetch(self, deadline: retries.Deadline) -> Layer:
        """Returns the layer with its weights, read if they are not known here, and drawn again if they are lost."""
        if self.local is None:
            servers = self._client._connected_layers()
            request = layer_service_pb2.ReadWeightsRequest(layer=layer_messages.stored_reference(self))
            try:
                answer = await self._client._call(servers.read, request, deadline)
            except LayerNotFoundError as lost:
                try:
                    await self._client._call(servers.put, layer_messages.sent_redraw(self), deadline)
                except InvalidArgumentError:  # other weights came out: these were not drawn
                    raise lost from None
                answer = await self._client._call(servers.read, request, deadline)
            self.local = Layer(self.config, *layer_messages.weights_of(answer))
        return self.local

    async def __call__(self, x: Any, *, output_dtype: Any = None, timeout: float | None = None) -> Array:
        """Returns the layer's output for an input; see `Client.conv2d`."""
        return (await self._client.convolve(self, x, output_dtype=output_dtype, timeout=timeout)).output

    async def weights(self, *, timeout: float | None = None) -> tuple[Array, Array | None]:
        """Returns (kernel, bias); see `StoredLayer.weights`."""
        layer = await self._fetch(self._client._deadline(timeout))
        assert layer.kernel is not None  # noqa: S101 (it was read)
        return layer.kernel, layer.bias

    async def to_keras(self, *, timeout: float | None = None) -> Any:
        """Returns a `keras.layers.Conv2D` with this configuration and these weights; see `StoredLayer.to_keras`."""
        return (await self._fetch(self._client._deadline(timeout))).to_keras()

    async def update_weights(
        self, kernel: Any, bias: Any = None, *, timeout: float | None = None
    ) -> tuple[AsyncStoredLayer, Losses]:
        """Makes a layer of this one's configuration and new weights; see `StoredLayer.update_weights`."""
        sent, deadline = (
            layer_messages.sent_update(self, Layer(self.config, kernel, bias)),
            self._client._deadline(timeout),
        )
        update = self._client._connected_layers().update
        try:
            answer = await self._client._call(update, sent, deadline)
        except LayerNotFoundError:
            await self._give(self.gifts, deadline)
            answer = await self._client._call(update, sent, deadline)
        made = AsyncStoredLayer(self._client, **stored_layers.known_parts(answer.layer, self.name, None))
        return made, Losses.from_message(answer.losses)
