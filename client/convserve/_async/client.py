"""AsyncClient: the asyncio client. Names, arguments and errors are Client's; every call is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import grpc
import grpc.aio

from convserve._async import map as _async_map
from convserve._async.replicas import LayerServers
from convserve._async.stored_layer import AsyncStoredLayer
from convserve._async.transfer import TensorPath
from convserve._rpc import channel, map_schedule, retries
from convserve._rpc import requests as _rpc
from convserve._rpc.credentials import TLS, Access
from convserve._rpc.forks import calls_under_way
from convserve.errors import ConvserveError, FieldViolation, InvalidRequestError, LayerNotFoundError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Conv2DParameters, Layer
from convserve.layers.plan import Plan
from convserve.protocol import layer_messages, stored_layers
from convserve.protocol.results import Result, ServerInfo, plan_from_message
from convserve.tensors.codec import INPUT_DTYPES, Array, checked_shape, numpy_dtype, standard_dtype
from convserve.v1 import (
    convolution_service_pb2,
    convolution_service_pb2_grpc,
    layer_service_pb2,
)


class AsyncClient:
    """Calls a convserve server from asyncio: numpy arrays in, numpy arrays out.

    Example:
        >>> async with AsyncClient("localhost:50051") as client:
        ...     y = await client.conv2d(x, filters=64, kernel_size=3, activation="relu", seed=0)
    """

    def __init__(
        self,
        target: str | Sequence[str] = channel.DEFAULT_TARGET,
        *,
        timeout: float = retries.DEFAULT_TIMEOUT_S,
        retry: retries.RetryRule | None = None,
        shared_memory: bool = True,
        token: str | None = None,
        tls: TLS | bool | None = None,
    ) -> None:
        """Prepares a connection; it is made with the first call in an event loop.

        Several loops may use it one after the other, but no fork of the process while it is connected.

        Args:
            target: As in `Client`.
            timeout: As in `Client`.
            retry: As in `Client`.
            shared_memory: As in `Client`.
            token: As in `Client`.
            tls: As in `Client`.

        Raises:
            InvalidRequestError: As in `Client`.
        """
        self._target = channel.channel_target(target)
        self._access = Access(self._target, token, tls)
        self._timeout = retries.checked_timeout(timeout, timeout)
        self._retry = retry or retries.RetryRule()
        self._budget = retries.RetryBudget(self._retry)
        self._shares_memory = shared_memory
        self._closed = False
        self._connecting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None

    def _connected(self) -> Any:
        if self._closed:
            text = "Expected an open client. Received a call after it was closed."
            raise InvalidRequestError(FieldViolation("client", text))
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            with self._connecting:
                calls_under_way.check_process()
                self._check_loop(loop)
                self._connect(loop)
        return self._stub

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop not in (None, loop) and self._loop.is_running():
            text = (
                "Expected one event loop at a time. "
                "Received a call in another loop than the one that uses it now: make a client for each."
            )
            raise InvalidRequestError(FieldViolation("client", text))

    def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._channel = loop, self._access.async_channel(self._target)  # which is of one loop
        calls_under_way.asyncio_clients.add(self)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._tensors = TensorPath(self._channel, self._target, self._shares_memory)
        self._servers = LayerServers(self._channel, self._target, self._access)

    def _connected_tensors(self) -> TensorPath:
        self._connected()
        return self._tensors

    def _connected_layers(self) -> LayerServers:
        self._connected()
        return self._servers

    def _deadline(self, timeout: float | None) -> retries.Deadline:
        return retries.Deadline.of(timeout, self._timeout)

    async def _call(
        self, method: Callable[..., Any], request: Any, timeout: retries.Timeout, retry: retries.RetryRule | None = None
    ) -> Any:
        """Sends a request until it is answered."""
        call = retries.Call(retry or self._retry, retries.Deadline.of(timeout, self._timeout), self._budget)
        while True:
            try:
                answer = await method(request, timeout=call.remaining_s())
                call.answered()
                return answer
            except (grpc.aio.AioRpcError, ConvserveError) as failure:
                delay = call.delay_after(failure)
            except grpc.aio.UsageError:  # the channel was closed between two steps of the call
                self._connected()
                raise
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
        self,
        layers: _rpc.Layers,
        x: Any,
        *,
        output_dtype: Any = None,
        batching: bool = True,
        timeout: float | None = None,
    ) -> Result:
        """Applies one or several layers, in order, in one call; see `Client.convolve`."""
        request = _rpc.convolve_request(layers, x, output_dtype, batching)
        return await self._convolve(request, self._deadline(timeout))

    async def _convolve(
        self, request: _rpc.ConvolveRequest, deadline: retries.Deadline, retry: retries.RetryRule | None = None
    ) -> Result:
        known = [each for each in request.layers if isinstance(each, AsyncStoredLayer)]
        for is_given in (False, True):
            gifts = [each.gifts for each in known]
            try:
                return await self._call(self._connected_tensors().convolve, request, deadline, retry)  # type: ignore[no-any-return]
            except LayerNotFoundError:
                if not known:
                    raise
            if is_given or not all(
                [await each._give(before, deadline) for each, before in zip(known, gifts, strict=True)]
            ):
                break
        for each in known:
            await each._fetch(deadline)  # the call brings them along, for servers that cannot keep them
        whole = request.carrying_layers()
        return await self._call(self._connected_tensors().convolve, whole, deadline, retry)  # type: ignore[no-any-return]

    def map(
        self,
        layers: _rpc.Layers,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        as_completed: bool = False,
        errors: Literal["raise", "return"] = "raise",
        max_bytes: int = map_schedule.DEFAULT_MAX_BYTES,
        output_dtype: Any = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Yields the output of each input, many of which are on their way at once; see `Client.map`.

        Inputs are read in a task of their own. One who leaves in the middle closes the generator
        (`contextlib.aclosing`), else what is under way ends when the event loop finds that nobody holds it.
        """
        self._deadline(timeout)
        flow = map_schedule.Pipeline(
            layers, output_dtype, as_completed=as_completed, errors=errors, max_bytes=max_bytes
        )
        return _async_map.outputs(self, flow, _async_map.each_of(inputs), timeout)

    async def empty(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """Returns an uninitialized array to write an input into; see `Client.empty`."""
        kind, dimensions = numpy_dtype(standard_dtype(dtype, "dtype", INPUT_DTYPES)), checked_shape(shape, "shape")
        await self._call(self._connected_tensors().connect, None, None)
        return self._tensors.empty(dimensions, kind)

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
        given = stored_layers.layer_to_put(layer, kernel, bias, seed, input_channels)
        if given.kernel is None:
            sent = layer_messages.sent_draw(given.config, name, input_channels)
        else:
            sent = layer_messages.sent_put(given, name)
        answer = await self._call(self._connected_layers().put, sent, timeout)
        return AsyncStoredLayer(self, **stored_layers.known_parts(answer.layer, name, sent.layer))

    async def layer(self, name: str, *, timeout: float | None = None) -> AsyncStoredLayer:
        """Returns the stored layer that a name leads to; see `Client.layer`."""
        request = layer_service_pb2.GetLayerRequest(layer=layer_messages.stored_reference(name))
        answer = await self._call(self._connected_layers().get, request, timeout)
        return AsyncStoredLayer(self, **stored_layers.known_parts(answer.layer, name, None))

    async def layers(self, name_prefix: str = "", *, timeout: float | None = None) -> list[AsyncStoredLayer]:
        """Returns the stored layers, or those with a name that begins so; see `Client.layers`."""
        request = layer_messages.list_request(name_prefix)
        found = await self._call(self._connected_layers().all_layers, request, timeout)
        return [AsyncStoredLayer(self, **parts) for parts in stored_layers.listed_parts(found, name_prefix)]

    async def missing(self, layers: Sequence[Layer], *, timeout: float | None = None) -> list[Layer]:
        """Returns those layers that the server does not hold; see `Client.missing`."""
        requests = layer_messages.missing_requests(layers)
        absent = await self._call(self._connected_layers().find_missing, requests, timeout)
        return [each for each in layers if each.digest in absent]

    async def delete(self, layer: AsyncStoredLayer | str, *, timeout: float | None = None) -> None:
        """Deletes a stored layer with its names, or a name; see `Client.delete`."""
        request = layer_service_pb2.DeleteLayerRequest(layer=layer_messages.stored_reference(layer))
        await self._call(self._connected_layers().delete, request, timeout)

    async def close(self) -> None:
        """Closes the connection.

        Raises:
            InvalidRequestError: In another event loop than the one that uses it now.
        """
        self._check_loop(asyncio.get_running_loop())
        self._closed = True
        if self._channel is not None:
            self._tensors.close()
            await self._servers.close()
            await self._channel.close()
            self._channel = None
            calls_under_way.asyncio_clients.discard(self)

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
