"""Client: the blocking client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from convserve import _rpc
from convserve._version import __version__
from convserve.layer import Conv2DParameters, Layer
from convserve.plan import Plan
from convserve.result import Result, ServerInfo, plan_from_message
from convserve.tensor import Array
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc

Response = TypeVar("Response")


class Client:
    """Calls a convserve server: numpy arrays in, numpy arrays out.

    It may be shared by threads, and used in a process that was forked after it was made.

    Example:
        >>> with Client("localhost:50051") as client:
        ...     y = client.conv2d(x, filters=64, kernel_size=3, activation="relu", seed=0)
    """

    def __init__(
        self,
        target: str | Sequence[str] = _rpc.DEFAULT_TARGET,
        *,
        timeout: float = _rpc.DEFAULT_TIMEOUT_S,
        retry: _rpc.RetryRule | None = None,
    ) -> None:
        """Prepares a connection; it is made with the first call.

        Args:
            target: "host:port", "unix:///path", or several "ip:port", over which calls are spread.
            timeout: Seconds that a call may take, retries included, unless it says otherwise.
            retry: When to send a call again; by default up to 5 times within the timeout.

        Raises:
            InvalidRequestError: For a target or timeout that makes no sense.
        """
        self._target = _rpc.channel_target(target)
        self._timeout = _rpc.checked_timeout(timeout, timeout)
        self._retry = retry or _rpc.RetryRule()
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        self._channel = grpc.insecure_channel(self._target, options=_rpc.channel_options(__version__))
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._stub.Convolve = self._channel.unary_unary(**_rpc.CONVOLVE)

    def _connected(self) -> Any:
        if self._process != os.getpid():
            self._open()  # a channel does not survive a fork
        return self._stub

    def _call(self, method: Callable[..., Response], request: Any, timeout: float | None) -> Response:
        call = _rpc.Call(self._retry, _rpc.checked_timeout(timeout, self._timeout))
        while True:
            try:
                return method(request, timeout=call.remaining_s())
            except grpc.RpcError as failure:
                delay = call.delay_after(failure)
            time.sleep(delay)

    def conv2d(
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
        """Returns `activation(conv2d(x, kernel) + bias)`, with the arguments of `keras.layers.Conv2D`.

        Args:
            x: (batch, height, width, channels), or (batch, channels, height, width) with
                `data_format="channels_first"`; float32, float16, bfloat16, float64, uint8 or int8.
            filters: The number of filters. It may be left out where a kernel is given.
            kernel_size: The window. It may be left out where a kernel is given.
            kernel: (kernel height, kernel width, channels / groups, filters). None: drawn with `kernel_initializer`.
            bias: (filters,), together with a kernel. With a kernel and no bias, none is added.
            seed: For every random initializer of this call that has none of its own.
            output_dtype: A floating-point dtype; None for the policy's compute dtype.
            timeout: Seconds for this call.
            **parameters: The other parameters of `Conv2D`.

        Returns:
            The output, (batch, new_height, new_width, filters) or (batch, filters, new_height, new_width).

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        layer = Layer.from_arguments(filters, kernel_size, kernel, bias, seed, parameters)
        return self.convolve(layer, x, output_dtype=output_dtype, timeout=timeout).output

    def convolve(
        self, layers: _rpc.Layers, x: Any, *, output_dtype: Any = None, timeout: float | None = None
    ) -> Result:
        """Applies one or several layers, in order, in one call.

        Args:
            layers: A Layer or Conv2D, or a list of them.
            x: As in `conv2d`.
            output_dtype: A floating-point dtype; None for the last layer's compute dtype.
            timeout: Seconds for this call.

        Returns:
            The output with losses, times, device and the seeds that the server chose.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        request = _rpc.convolve_request(layers, x, output_dtype)
        return self._call(self._connected().Convolve, request, timeout)  # type: ignore[no-any-return]

    def plan(
        self,
        layers: _rpc.Layers,
        input_shape: Sequence[int] | None = None,
        *,
        input_dtype: Any = "float32",
        output_dtype: Any = None,
        timeout: float | None = None,
    ) -> Plan:
        """Asks the server what a call would do, and whether it would take it. `Conv2D.plan` asks nobody.

        Args:
            layers: A Layer or Conv2D, or a list of them.
            input_shape: Four dimensions with the batch axis; None for one sample of the layer's own `input_shape`.
            input_dtype: The input's dtype.
            output_dtype: The dtype that would be asked for.
            timeout: Seconds for this call.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        request = _rpc.plan_request(layers, input_shape, input_dtype, output_dtype)
        return plan_from_message(self._call(self._connected().Plan, request, timeout))

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns what the server is: versions, devices, dtypes, numeric mode, limits.

        Raises:
            ConvserveError: One of the tree in `convserve.errors`.
        """
        request = convolution_service_pb2.GetServerInfoRequest()
        return ServerInfo.from_message(self._call(self._connected().GetServerInfo, request, timeout).server_info)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Returns the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()

    def __repr__(self) -> str:
        """Returns the client's target and timeout."""
        return f"<convserve.{type(self).__name__} {self._target} timeout={self._timeout:g}s>"
