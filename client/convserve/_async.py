"""AsyncClient: the asyncio client. Names, arguments and errors are Client's; every call is awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from convserve import _rpc
from convserve._version import __version__
from convserve.layer import Conv2DParameters, Layer
from convserve.plan import Plan
from convserve.result import Result, ServerInfo, plan_from_message
from convserve.tensor import Array
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc


class AsyncClient:
    """Calls a convserve server from asyncio: numpy arrays in, numpy arrays out.

    Example:
        >>> async with AsyncClient("localhost:50051") as client:
        ...     y = await client.conv2d(x, filters=64, kernel_size=3, activation="relu", seed=0)
    """

    def __init__(
        self,
        target: str | Sequence[str] = _rpc.DEFAULT_TARGET,
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
        self._target = _rpc.channel_target(target)
        self._timeout = _rpc.checked_timeout(timeout, timeout)
        self._retry = retry or _rpc.RetryRule()
        self._process = 0
        self._channel: grpc.aio.Channel | None = None

    def _connected(self) -> Any:
        if self._channel is None or self._process != os.getpid():
            self._process = os.getpid()  # a channel does not survive a fork
            self._channel = grpc.aio.insecure_channel(self._target, options=_rpc.channel_options(__version__))
            self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
            self._stub.Convolve = self._channel.unary_unary(**_rpc.CONVOLVE)
        return self._stub

    async def _call(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        call = _rpc.Call(self._retry, _rpc.checked_timeout(timeout, self._timeout))
        while True:
            try:
                return await method(request, timeout=call.remaining_s())
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
