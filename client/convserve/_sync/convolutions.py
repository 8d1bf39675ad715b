# Generated from convserve/_async/convolutions.py by client/unasync.py (make sync): change that one.
"""The forward passes of Client: one call, many inputs, and what a call would do."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Literal, Never, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from convserve._rpc import map_schedule, requests
from convserve._sync import io
from convserve._sync import map as _map
from convserve._sync.connection import Connection
from convserve.errors import ConvserveError
from convserve.layers.layer import Layer, given_parameters
from convserve.layers.plan import Plan
from convserve.protocol import call_arguments
from convserve.protocol.results import Result, plan_from_message
from convserve.tensors.codec import INPUT_DTYPES, Array, checked_shape, numpy_dtype, standard_dtype

S = TypeVar("S", bound=np.generic)


class Convolutions(Connection):
    """The calls that compute, or say what computing would take."""

    def conv2d(
        self,
        x: Any,
        filters: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        strides: int | Sequence[int] = (1, 1),
        padding: str | int | Sequence[int] | Sequence[Sequence[int]] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        input_shape: Sequence[int | None] | None = None,
        kernel: Any = None,
        bias: Any = None,
        seed: int | None = None,
        output_dtype: Any = None,
        out: Array | None = None,
        timeout: float | None = None,
        **unknown: Never,
    ) -> Array:
        """Returns `activation(conv2d(x, kernel) + bias)`, with the arguments of `keras.layers.Conv2D`.

        Args:
            x: (batch, height, width, channels), or (batch, channels, height, width) with
                `data_format="channels_first"`; float32, float16, bfloat16, float64, uint8 or int8.
            filters: The number of filters. It may be left out where a kernel is given.
            kernel_size: The window. It may be left out where a kernel is given.
            strides: The window's steps, one or (height, width).
            padding: "valid", "same", ((top, bottom), (left, right)), or as in PyTorch one or two integers.
            data_format: "channels_last", "channels_first", or None for what keras.json says.
            dilation_rate: The distance between the window's elements, one or (height, width).
            groups: Parts of the channels, each convolved by itself with its part of the filters. With the name of a
                classic kernel 1 means as many as the input has channels.
            activation: None, a Keras name, one of `convserve.activations`, or a function of `keras.activations`.
            use_bias: Whether a bias is drawn. With a kernel, whether there is one is told by `bias`.
            kernel_initializer: What draws the kernel: a Keras name or one of `convserve.initializers`.
            bias_initializer: What draws the bias.
            kernel_regularizer: None or one of `convserve.regularizers`; `convolve` returns its loss.
            bias_regularizer: Likewise.
            activity_regularizer: Likewise.
            kernel_constraint: None or one of `convserve.constraints`, which no forward pass applies.
            bias_constraint: Likewise.
            name: A label without "/".
            dtype: Keras' dtype policy, such as "mixed_float16"; None for `floatx` of keras.json.
            trainable: False for no kernel or bias loss.
            input_shape: (height, width, channels), which a call does not need.
            kernel: (kernel height, kernel width, channels / groups, filters); or the name of a classic one that filters
                each channel by itself: sobel-x, sobel-y, laplacian, gaussian, sharpen, emboss, box. None: drawn with
                `kernel_initializer`.
            bias: (filters,), together with a kernel. With a kernel and no bias, none is added.
            seed: For every random initializer of this call that has none of its own.
            output_dtype: A floating-point dtype; None for the policy's compute dtype.
            out: An array for the output, of its very shape and dtype, C-contiguous, writable, and apart from input and
                weights in memory. Then it is what is returned. A call that fails may have written part of it.
            timeout: Seconds for this call.
            **unknown: None; what is no parameter is refused with the one that may be meant.

        Returns:
            The output, (batch, new_height, new_width, filters) or (batch, filters, new_height, new_width); `out` itself
            where that is given.

        Raises:
            InvalidArgumentError: For wrong arguments, before anything is sent.
        """
        parameters = given_parameters(locals())
        layer = Layer.from_arguments(filters, kernel_size, kernel, bias, seed, parameters, x)
        return (self.convolve(layer, x, output_dtype=output_dtype, out=out, timeout=timeout)).output

    @overload
    def convolve(
        self, layers: call_arguments.Layers, x: Any, *, output_dtype: Any = None, batching: bool = True,
        out: NDArray[S], timeout: float | None = None,
    ) -> Result[S]: ...  # fmt: skip
    @overload
    def convolve(
        self, layers: call_arguments.Layers, x: Any, *, output_dtype: type[S] | np.dtype[S], batching: bool = True,
        out: None = None, timeout: float | None = None,
    ) -> Result[S]: ...  # fmt: skip
    @overload
    def convolve(
        self, layers: call_arguments.Layers, x: Any, *, output_dtype: Any = None, batching: bool = True,
        out: Array | None = None, timeout: float | None = None,
    ) -> Result: ...  # fmt: skip
    def convolve(
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
        return self._convolve(request, self._deadline(timeout))

    @overload
    def map(
        self, layers: call_arguments.Layers, inputs: Iterable[Any], *,
        as_completed: Literal[False] = False, errors: Literal["raise"] = "raise",
        max_bytes: int = ..., output_dtype: Any = None, timeout: float | None = None,
    ) -> Generator[Array, None, None]: ...  # fmt: skip
    @overload
    def map(
        self, layers: call_arguments.Layers, inputs: Iterable[Any], *,
        as_completed: Literal[True], errors: Literal["raise"] = "raise",
        max_bytes: int = ..., output_dtype: Any = None, timeout: float | None = None,
    ) -> Generator[tuple[int, Array], None, None]: ...  # fmt: skip
    @overload
    def map(
        self, layers: call_arguments.Layers, inputs: Iterable[Any], *,
        as_completed: Literal[False] = False, errors: Literal["return"],
        max_bytes: int = ..., output_dtype: Any = None, timeout: float | None = None,
    ) -> Generator[Array | ConvserveError, None, None]: ...  # fmt: skip
    @overload
    def map(
        self, layers: call_arguments.Layers, inputs: Iterable[Any], *,
        as_completed: Literal[True], errors: Literal["return"],
        max_bytes: int = ..., output_dtype: Any = None, timeout: float | None = None,
    ) -> Generator[tuple[int, Array | ConvserveError], None, None]: ...  # fmt: skip
    @overload
    def map(
        self, layers: call_arguments.Layers, inputs: Iterable[Any], *,
        as_completed: bool = False, errors: Literal["raise", "return"] = "raise",
        max_bytes: int = ..., output_dtype: Any = None, timeout: float | None = None,
    ) -> Generator[Any, None, None]: ...  # fmt: skip
    def map(
        self,
        layers: call_arguments.Layers,
        inputs: Iterable[Any],
        *,
        as_completed: bool = False,
        errors: Literal["raise", "return"] = "raise",
        max_bytes: int = map_schedule.DEFAULT_MAX_BYTES,
        output_dtype: Any = None,
        timeout: float | None = None,
    ) -> Generator[Any, None, None]:
        """Yields the output of each input, many of which are on their way at once.

        Inputs are read as they fit in, in the caller's own thread. Small ones that wait go several in one call.
        A call that nobody answers, or that a server is too busy for, is sent again until the item's timeout, so that
        a server may be started again meanwhile. Close the generator to end it in the middle.

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
            timeout: Seconds for each input, from when it is sent; anew for one that goes alone after a call of several
                failed, so that none fails of time that others took.

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

    def empty(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """Returns an uninitialized array to write an input into, or for a call's `out`.

        With a server that shares memory it lies there, so that it need not be copied to be sent, and the server itself
        writes the output into it; else it is an array like any other. While a call is under way with it, it is not to
        be written to. What a fork's child writes to it stays in the child.

        Raises:
            InvalidTensorError: For a dtype or shape that no input has.
        """
        element, dimensions = numpy_dtype(standard_dtype(dtype, "dtype", INPUT_DTYPES)), checked_shape(shape, "shape")
        deadline, tensors = self._deadline(None), self._connected()._tensors
        if tensors.sharing.is_to_connect():
            self._call(tensors.connect, None, deadline)
        return io.in_thread(tensors.sharing.empty, dimensions, element, deadline)

    def plan(
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
        return plan_from_message(self._call(method, request, timeout), len(request.layers))
