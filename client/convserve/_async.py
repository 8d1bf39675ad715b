"""AsyncClient: the asyncio client. Names, arguments and errors are Client's; every call is awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from convserve import _channel, _rpc, stored
from convserve.conv2d import Conv2D
from convserve.errors import LayerNotFoundError
from convserve.layer import Conv2DParameters, Layer
from convserve.plan import Plan
from convserve.result import Losses, Result, ServerInfo, plan_from_message
from convserve.tensor import Array
from convserve.v1 import (
    convolution_service_pb2,
    convolution_service_pb2_grpc,
    layer_service_pb2,
    layer_service_pb2_grpc,
)


class AsyncClient:
    """Calls a convserve server from asyncio: numpy arrays in, numpy arrays out.

    Example:
        >>> async with AsyncClient("localhost:50051") as client:
        ...     y = await client.conv2d(x, filters=64, kernel_size=3, activation="relu", seed=0)
    """

    def __init__(
        self,
        target: str | Sequence[str] = _channel.DEFAULT_TARGET,
        *,
        timeout: float = _rpc.DEFAULT_TIMEOUT_S,
        retry: _rpc.RetryRule | None = None,
    ) -> None:
        """Prepares a connection; it is made with the first call, in the event loop of that call.

        Args:
            target: As in `Client`.
            timeout: As in `Client`.
            retry: As in `Client`.

        Raises:
            InvalidRequestError: For a target or timeout that makes no sense.
        """
        self._target = _channel.channel_target(target)
        self._timeout = _rpc.checked_timeout(timeout, timeout)
        self._retry = retry or _rpc.RetryRule()
        self._process = 0
        self._channel: grpc.aio.Channel | None = None

    def _connected(self) -> Any:
        if self._channel is None or self._process != os.getpid():
            self._process = os.getpid()  # a channel does not survive a fork
            self._channel = grpc.aio.insecure_channel(self._target, options=_channel.channel_options())
            self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
            self._stub.Convolve = self._channel.unary_unary(**_rpc.CONVOLVE)
            self._layer_stub = layer_service_pb2_grpc.LayerServiceStub(self._channel)  # type: ignore[no-untyped-call]
        return self._stub

    def _connected_layers(self) -> Any:
        self._connected()
        return self._layer_stub

    async def _call(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        """Sends a request until it is answered; a stream of requests is given as a function that makes it anew."""
        call = _rpc.Call(self._retry, _rpc.checked_timeout(timeout, self._timeout))
        while True:
            try:
                return await method(request() if callable(request) else request, timeout=call.remaining_s())
            except grpc.aio.AioRpcError as failure:
                delay = call.delay_after(failure)
            await asyncio.sleep(delay)

    async def conv2d(
        self,
        x: Any,
        filters: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        *,
        kernel: Any = None,
        bias: Any = None,
        seed: int | None = None,
        output_dtype: Any = None,
        timeout: float | None = None,
        **parameters: Unpack[Conv2DParameters],
    ) -> Array:
        """Returns `activation(conv2d(x, kernel) + bias)`; see `Client.conv2d`."""
        layer = Layer.from_arguments(filters, kernel_size, kernel, bias, seed, parameters)
        return (await self.convolve(layer, x, output_dtype=output_dtype, timeout=timeout)).output

    async def convolve(
        self, layers: _rpc.Layers, x: Any, *, output_dtype: Any = None, timeout: float | None = None
    ) -> Result:
        """Applies one or several layers, in order, in one call; see `Client.convolve`."""
        request = _rpc.convolve_request(layers, x, output_dtype)
        try:
            return await self._call(self._connected().Convolve, request, timeout)  # type: ignore[no-any-return]
        except LayerNotFoundError:
            pass  # see `Client.convolve`
        try:
            return await self._call(self._connected().Convolve, request, timeout)  # type: ignore[no-any-return]
        except LayerNotFoundError:
            for each in request.layers:
                if isinstance(each, AsyncStoredLayer):
                    await each.weights(timeout=timeout)
        request = request.carrying_layers()
        return await self._call(self._connected().Convolve, request, timeout)  # type: ignore[no-any-return]

    async def plan(
        self,
        layers: _rpc.Layers,
        input_shape: Sequence[int] | None = None,
        *,
        input_dtype: Any = "float32",
        output_dtype: Any = None,
        timeout: float | None = None,
    ) -> Plan:
        """Asks the server what a call would do; see `Client.plan`."""
        request = _rpc.plan_request(layers, input_shape, input_dtype, output_dtype)
        return plan_from_message(await self._call(self._connected().Plan, request, timeout))

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns what the server is; see `Client.info`."""
        request = convolution_service_pb2.GetServerInfoRequest()
        response = await self._call(self._connected().GetServerInfo, request, timeout)
        return ServerInfo.from_message(response.server_info)

    async def put(
        self,
        layer: Conv2D | Layer,
        kernel: Any = None,
        bias: Any = None,
        *,
        name: str | None = None,
        input_channels: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> AsyncStoredLayer:
        """Stores a layer on the server, so that its weights cross the wire once; see `Client.put`."""
        given = stored.layer_to_put(layer, kernel, bias, seed)
        put = self._connected_layers().PutLayer
        if given.kernel is None:
            messages = list(stored.draw_messages(given.config, name, input_channels))
            answer = await self._call(put, lambda: iter(messages), timeout)
            return AsyncStoredLayer(self, **stored.known_parts(answer.layer, name, None))
        try:
            answer = await self._call(put, lambda: stored.name_messages(given, name), timeout)
        except LayerNotFoundError:
            answer = await self._call(put, lambda: stored.put_messages(given, name), timeout)
        return AsyncStoredLayer(self, **stored.known_parts(answer.layer, name, given))

    async def layer(self, name: str, *, timeout: float | None = None) -> AsyncStoredLayer:
        """Returns the stored layer that a name leads to; see `Client.layer`."""
        request = layer_service_pb2.GetLayerRequest(layer=stored.stored_reference(name))
        answer = await self._call(self._connected_layers().GetLayer, request, timeout)
        return AsyncStoredLayer(self, **stored.known_parts(answer.layer, name, None))

    async def layers(self, name_prefix: str = "", *, timeout: float | None = None) -> list[AsyncStoredLayer]:
        """Returns the stored layers, or those with a name that begins so; see `Client.layers`."""
        found: list[AsyncStoredLayer] = []
        request = layer_service_pb2.ListLayersRequest(name_prefix=name_prefix)
        while True:
            page = await self._call(self._connected_layers().ListLayers, request, timeout)
            found += (AsyncStoredLayer(self, **stored.known_parts(each, None, None)) for each in page.layers)
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def missing(self, layers: Sequence[Layer], *, timeout: float | None = None) -> list[Layer]:
        """Returns those layers that the server does not hold; see `Client.missing`."""
        request = layer_service_pb2.FindMissingLayersRequest(digests=[each.digest for each in layers])
        answer = await self._call(self._connected_layers().FindMissingLayers, request, timeout)
        absent = set(answer.missing_digests)
        return [each for each in layers if each.digest in absent]

    async def delete(self, layer: AsyncStoredLayer | str, *, timeout: float | None = None) -> None:
        """Deletes a stored layer with its names, or a name; see `Client.delete`."""
        request = layer_service_pb2.DeleteLayerRequest(layer=stored.stored_reference(layer, by_digest=True))
        await self._call(self._connected_layers().DeleteLayer, request, timeout)

    async def close(self) -> None:
        """Closes the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        """Returns the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        await self.close()

    def __repr__(self) -> str:
        """Returns the client's target and timeout."""
        return f"<convserve.{type(self).__name__} {self._target} timeout={self._timeout:g}s>"


class AsyncStoredLayer(stored.KnownLayer):
    """A layer that the server stores; as `StoredLayer`, awaited."""

    def __init__(self, client: AsyncClient, **known: Any) -> None:
        super().__init__(**known)
        self._client = client

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

            answer = await self._client._call(whole, request, timeout)
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
        update = self._client._connected_layers().UpdateWeights
        answer = await self._client._call(update, lambda: stored.update_messages(self, given), timeout)
        made = AsyncStoredLayer(self._client, **stored.known_parts(answer.layer, self.name, None))
        return made, Losses.from_message(answer.losses)
