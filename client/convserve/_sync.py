"""Client: the blocking client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from convserve import _channel, _rpc, layer_messages, stored
from convserve._sync_layer import StoredLayer
from convserve._sync_servers import LayerServers
from convserve._sync_tensors import TensorPath
from convserve.access import TLS, Access
from convserve.conv2d import Conv2D
from convserve.errors import ConvserveError, FieldViolation, InvalidRequestError, LayerNotFoundError
from convserve.layer import Conv2DParameters, Layer
from convserve.plan import Plan
from convserve.result import Result, ServerInfo, plan_from_message
from convserve.tensor import INPUT_DTYPES, Array, checked_shape, numpy_dtype, standard_dtype
from convserve.v1 import (
    convolution_service_pb2,
    convolution_service_pb2_grpc,
    layer_service_pb2,
)

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
        target: str | Sequence[str] = _channel.DEFAULT_TARGET,
        *,
        timeout: float = _rpc.DEFAULT_TIMEOUT_S,
        retry: _rpc.RetryRule | None = None,
        shared_memory: bool = True,
        token: str | None = None,
        tls: TLS | bool | None = None,
    ) -> None:
        """Prepares a connection; it is made with the first call.

        Args:
            target: "host:port", "unix:///path", or several "ip:port", over which calls are spread.
            timeout: Seconds that a call may take, retries included, unless it says otherwise.
            retry: When to send a call again; by default up to 5 times within the timeout.
            shared_memory: Whether tensors go through shared memory where one server on this machine, by loopback or a
                Unix socket, allows it.
            token: What the server knows this caller by; None for CONVSERVE_TOKEN of the environment, "" for none.
            tls: How the connection is encrypted: True with gRPC's root certificates, or a `TLS`. None for not at all,
                which sends no token to another machine; False for not at all, and sends it.

        Raises:
            InvalidRequestError: For a target or timeout that makes no sense, a token that others could read on its way,
                or files of `tls` that cannot be used.
        """
        self._target = _channel.channel_target(target)
        self._access = Access(self._target, token, tls)
        self._timeout = _rpc.checked_timeout(timeout, timeout)
        self._retry = retry or _rpc.RetryRule()
        self._budget = _rpc.RetryBudget(self._retry)
        self._shares_memory = shared_memory
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._channel = self._access.channel(self._target)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._tensors = TensorPath(self._channel, self._target, self._shares_memory)
        self._servers = LayerServers(self._channel, self._target, self._access)
        self._process = os.getpid()  # last: another thread may look at it to see whether the rest is there

    def _connected(self) -> Any:
        if self._closed:
            text = "Expected an open client. Received a call after it was closed."
            raise InvalidRequestError(FieldViolation("client", text))
        if self._process != os.getpid():
            self._open()  # a channel does not survive a fork
        return self._stub

    def _connected_tensors(self) -> TensorPath:
        self._connected()
        return self._tensors

    def _connected_layers(self) -> LayerServers:
        self._connected()
        return self._servers

    def _deadline(self, timeout: float | None) -> _rpc.Deadline:
        return _rpc.Deadline.of(timeout, self._timeout)

    def _call(
        self, method: Callable[..., Response], request: Any, timeout: _rpc.Timeout, retry: _rpc.RetryRule | None = None
    ) -> Response:
        """Sends a request until it is answered."""
        call = _rpc.Call(retry or self._retry, _rpc.Deadline.of(timeout, self._timeout), self._budget)
        while True:
            try:
                answer = method(request, timeout=call.remaining_s())
                call.answered()
                return answer
            except (grpc.RpcError, ConvserveError) as failure:
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
        self,
        layers: _rpc.Layers,
        x: Any,
        *,
        output_dtype: Any = None,
        batching: bool = True,
        timeout: float | None = None,
    ) -> Result:
        """Applies one or several layers, in order, in one call.

        Args:
            layers: A Layer or Conv2D, or a list of them.
            x: As in `conv2d`.
            output_dtype: A floating-point dtype; None for the last layer's compute dtype.
            batching: Whether the server may compute this call together with others that wait for the same layers.
            timeout: Seconds for this call.

        Returns:
            The output with losses, times, device and the seeds that the server chose.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        request = _rpc.convolve_request(layers, x, output_dtype, batching)
        deadline = self._deadline(timeout)
        known = [each for each in request.layers if isinstance(each, StoredLayer)]
        for is_given in (False, True):
            gifts = [each.gifts for each in known]
            try:
                return self._call(self._connected_tensors().convolve, request, deadline)
            except LayerNotFoundError:
                if not known:
                    raise
            if is_given or not all(each._give(before, deadline) for each, before in zip(known, gifts, strict=True)):
                break
        for each in known:
            each._fetch(deadline)  # the call brings them along, for servers that cannot keep them
        return self._call(self._connected_tensors().convolve, request.carrying_layers(), deadline)

    def empty(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """Returns an uninitialized array to write an input into, which then need not be copied to be sent.

        With a server that shares memory it lies there, else it is an array like any other. While a call is under way
        with it, it is not to be written to.

        Raises:
            InvalidTensorError: For a dtype or shape that no input has.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        kind, dimensions = numpy_dtype(standard_dtype(dtype, "dtype", INPUT_DTYPES)), checked_shape(shape, "shape")
        self._call(self._connected_tensors().connect, None, None)
        return self._tensors.empty(dimensions, kind)

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

    def put(
        self,
        layer: Conv2D | Layer,
        kernel: Any = None,
        bias: Any = None,
        *,
        name: str | None = None,
        input_channels: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> StoredLayer:
        """Stores a layer on the server, so that its weights cross the wire once.

        Args:
            layer: A Conv2D, or a Layer with its weights.
            kernel: With a Conv2D: the kernel. None: the server draws the weights.
            bias: With a Conv2D: the bias.
            name: An alias; putting another layer under it moves it.
            input_channels: For which the server draws weights; None for those of the Conv2D's `input_shape`.
            seed: For every random initializer that has none of its own.
            timeout: Seconds for this call.

        Returns:
            The layer, to be called with inputs. It goes by its digest, so a name that moves does not change it. Of
            several servers the first that answers has it, and the name; calls give it to the others.

        Raises:
            InvalidArgumentError: For wrong arguments.
            OverloadedError: If the store is full.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        given = stored.layer_to_put(layer, kernel, bias, seed, input_channels)
        if given.kernel is None:
            sent = layer_messages.sent_draw(given.config, name, input_channels)
        else:
            sent = layer_messages.sent_put(given, name)
        answer = self._call(self._connected_layers().put, sent, timeout)
        return StoredLayer(self, **stored.known_parts(answer.layer, name, sent.layer))

    def layer(self, name: str, *, timeout: float | None = None) -> StoredLayer:
        """Returns the stored layer that a name leads to, to be called with inputs.

        Raises:
            LayerNotFoundError: If it leads nowhere.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        request = layer_service_pb2.GetLayerRequest(layer=layer_messages.stored_reference(name))
        answer = self._call(self._connected_layers().get, request, timeout)
        return StoredLayer(self, **stored.known_parts(answer.layer, name, None))

    def layers(self, name_prefix: str = "", *, timeout: float | None = None) -> list[StoredLayer]:
        """Returns the stored layers of all servers, or those with a name that begins so, in the order of digests.

        Each one's `name` is its first that begins so; `names` has all.

        Raises:
            ConvserveError: One of the tree in `convserve.errors`.
        """
        request = layer_messages.list_request(name_prefix)
        found = self._call(self._connected_layers().all_layers, request, timeout)
        return [StoredLayer(self, **parts) for parts in stored.listed_parts(found, name_prefix)]

    def missing(self, layers: Sequence[Layer], *, timeout: float | None = None) -> list[Layer]:
        """Returns those layers that no server holds, asked in one call, or a few where they are very many.

        Raises:
            InvalidRequestError: If there is anything but layers.
            InvalidWeightsError: For a layer without weights, which has no digest.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        requests = layer_messages.missing_requests(layers)
        absent = self._call(self._connected_layers().find_missing, requests, timeout)
        return [each for each in layers if each.digest in absent]

    def delete(self, layer: StoredLayer | str, *, timeout: float | None = None) -> None:
        """Deletes a stored layer with its names, or a name, and its layer with the last one, from every server.

        Raises:
            LayerNotFoundError: If there is none.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        request = layer_service_pb2.DeleteLayerRequest(layer=layer_messages.stored_reference(layer))
        self._call(self._connected_layers().delete, request, timeout)

    def close(self) -> None:
        """Closes the connection."""
        self._closed = True
        self._tensors.close()
        self._servers.close()
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
