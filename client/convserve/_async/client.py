"""AsyncClient: the asyncio client."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from typing import Any, Literal, Unpack

from convserve._async import io
from convserve._async import map as _map
from convserve._async.layer_calls import LayerCalls
from convserve._async.stored_layer import AsyncStoredLayer
from convserve._rpc import map_schedule, requests
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Conv2DParameters, Layer
from convserve.layers.plan import Plan
from convserve.protocol import call_arguments, layer_messages, name_messages, stored_layers
from convserve.protocol.results import Result, ServerInfo, plan_from_message
from convserve.tensors.codec import INPUT_DTYPES, Array, checked_shape, numpy_dtype, standard_dtype
from convserve.v1 import convolution_service_pb2


class AsyncClient(LayerCalls):
    """Calls a convserve server: numpy arrays in, numpy arrays out.

    Several event loops may use it one after the other, but no fork of the process while it is connected.
    Each call may raise any ConvserveError of the tree in `convserve.errors`; its method names those that are its own.

    Examples:
        >>> async with AsyncClient("localhost:50051") as client:
        ...     y = await client.conv2d(x, filters=64, kernel_size=3, activation="relu", seed=0)
    """

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
        out: Array | None = None,
        timeout: float | None = None,
        **parameters: Unpack[Conv2DParameters],
    ) -> Array:
        """Returns `activation(conv2d(x, kernel) + bias)`, with the arguments of `keras.layers.Conv2D`.

        Args:
            x: (batch, height, width, channels), or (batch, channels, height, width) with
                `data_format="channels_first"`; float32, float16, bfloat16, float64, uint8 or int8.
            filters: The number of filters. It may be left out where a kernel is given.
            kernel_size: The window. It may be left out where a kernel is given.
            kernel: (kernel height, kernel width, channels / groups, filters); or the name of a classic one that filters
                each channel by itself: sobel-x, sobel-y, laplacian, gaussian, sharpen, emboss, box. None: drawn with
                `kernel_initializer`.
            bias: (filters,), together with a kernel. With a kernel and no bias, none is added.
            seed: For every random initializer of this call that has none of its own.
            output_dtype: A floating-point dtype; None for the policy's compute dtype.
            out: An array for the output, of its very shape and dtype, C-contiguous, writable, and apart from input and
                weights in memory. Then it is what is returned. A call that fails may have written part of it.
            timeout: Seconds for this call.
            **parameters: The other parameters of `Conv2D`.

        Returns:
            The output, (batch, new_height, new_width, filters) or (batch, filters, new_height, new_width); `out` itself
            where that is given.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
        """
        layer = Layer.from_arguments(filters, kernel_size, kernel, bias, seed, parameters, x)
        return (await self.convolve(layer, x, output_dtype=output_dtype, out=out, timeout=timeout)).output

    async def convolve(
        self,
        layers: call_arguments.Layers,
        x: Any,
        *,
        output_dtype: Any = None,
        batching: bool = True,
        out: Array | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Applies one or several layers, in order, in one call.

        Args:
            layers: A Layer or Conv2D, or a list of them.
            x: As in `conv2d`.
            output_dtype: A floating-point dtype; None for the last layer's compute dtype.
            batching: Whether the server may compute this call together with others that wait for the same layers.
            out: As in `conv2d`; it is the result's `output`.
            timeout: Seconds for this call.

        Returns:
            The output with losses, times, device and the seeds that the server chose.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
        """
        request = requests.convolve_request(layers, x, output_dtype, batching, out)
        return await self._convolve(request, self._deadline(timeout))

    def map(
        self,
        layers: call_arguments.Layers,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        as_completed: bool = False,
        errors: Literal["raise", "return"] = "raise",
        max_bytes: int = map_schedule.DEFAULT_MAX_BYTES,
        output_dtype: Any = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Yields the output of each input, many of which are on their way at once.

        Inputs are read as they fit in, in a task of their own. Small ones that wait go several in one call.
        A call that nobody answers, or that a server is too busy for, is sent again until the item's timeout, so that
        a server may be started again meanwhile. Close the generator (`contextlib.aclosing`) to end it in the middle.

        Args:
            layers: As in `convolve`. Weights that the server is to draw are the same for all inputs.
            inputs: Arrays as in `conv2d`, or of 3 dimensions for one sample, whose output has 3 too. None is to be
                written to before its output has come.
            as_completed: Whether to yield (index, output) as outputs come, instead of outputs in the inputs' order.
            errors: What becomes of an input that fails: "raise" ends all with its error, "return" yields the error
                in the output's place and goes on.
            max_bytes: The most bytes of inputs that were read and outputs that were not taken yet, together; an item
                that is larger goes alone.
            output_dtype: As in `convolve`.
            timeout: Seconds for each input, from when it is first sent.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is read.
            ConvserveError: That of an input, in its place.
            Exception: What reading `inputs` raises, after the outputs of those before.
        """
        self._deadline(timeout)
        pipeline = map_schedule.Pipeline(
            layers, output_dtype, as_completed=as_completed, errors=errors, max_bytes=max_bytes
        )
        return _map.outputs(self, pipeline, inputs, timeout)

    async def empty(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """Returns an uninitialized array to write an input into, or for a call's `out`.

        With a server that shares memory it lies there, so that it need not be copied to be sent, and the server itself
        writes the output into it; else it is an array like any other. While a call is under way with it, it is not to
        be written to.

        Raises:
            InvalidTensorError: For a dtype or shape that no input has.
        """
        element, dimensions = numpy_dtype(standard_dtype(dtype, "dtype", INPUT_DTYPES)), checked_shape(shape, "shape")
        deadline, tensors = self._deadline(None), self._connected()._tensors
        if tensors.sharing.is_to_connect():
            await self._call(tensors.connect, None, deadline)
        return await io.in_thread(tensors.sharing.empty, dimensions, element, deadline)

    async def plan(
        self,
        layers: call_arguments.Layers,
        input_shape: Sequence[int] | None = None,
        *,
        input_dtype: Any = "float32",
        output_dtype: Any = None,
        timeout: float | None = None,
    ) -> Plan:
        """Asks the server what a call would do, and whether it would take it. `Conv2D.plan` needs no server.

        Args:
            layers: A Layer or Conv2D, or a list of them.
            input_shape: Four dimensions with the batch axis; None for one sample of the layer's own `input_shape`.
            input_dtype: The input's dtype.
            output_dtype: The dtype that would be asked for.
            timeout: Seconds for this call.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
        """
        request = requests.plan_request(layers, input_shape, input_dtype, output_dtype)
        method = functools.partial(io.answer, self._connected()._stub.Plan)
        return plan_from_message(await self._call(method, request, timeout), len(request.layers))

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns what the server is: versions, devices, dtypes, numeric mode, limits."""
        request = convolution_service_pb2.GetServerInfoRequest()
        method = functools.partial(io.answer, self._connected()._stub.GetServerInfo)
        return ServerInfo.from_message((await self._call(method, request, timeout)).server_info)

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
        answer = await self._call(self._connected()._servers.put, upload, timeout)
        name_messages.check_heeded(expect, answer.version)
        return AsyncStoredLayer(self, **stored_layers.known_parts(answer.layer, name, checked))
