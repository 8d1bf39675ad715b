"""AsyncClient: the asyncio client."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from convserve._async import io
from convserve._async.connection import Connection
from convserve._async.convolutions import Convolutions
from convserve._async.layer_calls import LayerCalls
from convserve._async.stored_layer import AsyncStoredLayer
from convserve._rpc import retries
from convserve.errors import UnavailableError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.protocol import health, layer_messages, name_messages, stored_layers
from convserve.protocol.server_info import ServerInfo
from convserve.v1 import convolution_service_pb2


class AsyncClient(Convolutions, LayerCalls):
    """Calls a convserve server: numpy arrays in, numpy arrays out.

    Several event loops may use it one after the other, but no fork of the process while it is connected.
    Each call may raise any ConvserveError of the tree in `convserve.errors`; its method names those that are its own.

    Examples:
        >>> async with AsyncClient("localhost:50051") as client:
        ...     y = await client.conv2d(x, filters=64, kernel_size=3, activation="relu", seed=0)
    """

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns what the server is: versions, devices, dtypes, numeric mode, limits."""
        request = convolution_service_pb2.GetServerInfoRequest()
        method = functools.partial(io.answer, self._connected()._stub.GetServerInfo)
        return ServerInfo.from_message((await self._call(method, request, timeout)).server_info)

    async def health(self, *, timeout: float | None = None) -> health.Status:
        """Returns what the server's health service (grpc.health.v1) says: "SERVING", "NOT_SERVING" or another status.

        It asks once; of several servers one. It shows the token that calls show, and needs none.

        Raises:
            UnavailableError: If nobody answers.
            UnimplementedError: If there is no health service there.
        """
        method = functools.partial(io.answer, self._connected()._channel.unary_unary(health.METHOD))
        return health.status(await self._call(method, health.WHOLE_SERVER, timeout, retries.NO_RETRIES))

    async def wait_until_ready(self, *, timeout: float | None = None) -> None:
        """Returns once the server serves, and waits for one that is not started yet; of several servers for one.

        Args:
            timeout: Seconds to wait; None for the client's timeout.

        Raises:
            DeadlineExceededError: If it does not serve in time; the text has what it said, or why nobody answered.
            UnimplementedError: If there is no health service there.
        """
        check, deadline = self._connected()._channel.unary_unary(health.METHOD), self._deadline(timeout)
        try:
            await self._call(self._serving, check, deadline, retries.UNTIL_READY)
        except UnavailableError as error:
            raise deadline.exceeded(refusal=str(error)) from None

    async def _serving(self, check: Any, deadline: retries.Deadline) -> None:
        health.check_serving(await io.answer(check, health.WHOLE_SERVER, deadline))

    async def put(
        self,
        layer: Conv2D | Layer | Any,
        kernel: Any = None,
        bias: Any = None,
        *,
        name: str | None = None,
        expect: name_messages.Expect = None,
        input_channels: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,
    ) -> AsyncStoredLayer:
        """Stores a layer on the server, so that its weights cross the wire once.

        Args:
            layer: A Conv2D, a Layer with its weights, or a layer of Keras' (see `Layer.from_keras`).
            kernel: With a Conv2D: the kernel, or as in `conv2d` the name of a classic one, where the Conv2D's filters
                and groups are the input's channels. None: the server draws the weights.
            bias: With a Conv2D: the bias.
            name: An alias; putting another layer under it moves it.
            expect: What must be at the name, so that the put does not undo what another caller did: a layer or its
                digest (32 bytes or 64 hexadecimal digits), or "absent" for a name that there is not. None for whatever
                is there. A name that leads to the layer already is no conflict.
            input_channels: For which the server draws weights; None for those of the Conv2D's `input_shape`.
            seed: For every random initializer that has none of its own.
            timeout: Seconds for this call.

        Returns:
            The layer, to be called with inputs. It goes by its digest, so a name that moves does not change it. Of
            several servers the first that answers has it, and the name; calls give it to the others.

        Raises:
            InvalidArgumentError: For wrong arguments.
            OverloadedError: If the store is full.
            NameConflictError: If something else than expected is at the name; nothing was stored or moved.
            UnavailableError: If no server answered. With a name and no `expect`, where one may have moved it all the
                same, the call is not retried, so that it does not undo what another caller has done since.
            UnimplementedError: If the server is too old to know `expect`; it has moved no name.
        """
        checked = stored_layers.layer_to_put(layer, kernel, bias, seed, input_channels)
        if checked.kernel is None:
            upload = layer_messages.config_upload(checked.config, name, input_channels, expect)
        else:
            upload = layer_messages.layer_upload(checked, name, expect)
        answer = await self._first(upload, timeout)
        name_messages.check_heeded(expect, answer.version)
        return AsyncStoredLayer(self, **stored_layers.known_parts(answer.layer, name, checked))


# What Python's errors, of a keyword that there is not, and tracebacks call the methods.
for _kind in (Connection, Convolutions, LayerCalls):
    for _name, _method in vars(_kind).items():
        if inspect.isfunction(_method):
            _method.__module__, _method.__qualname__ = __name__, f"AsyncClient.{_name}"
