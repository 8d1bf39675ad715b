"""What a call would do, from shapes and configuration alone. Pure arithmetic on Python's integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from convserve.activations import GLU, Activation, Sparsemax
from convserve.display import html_tables
from convserve.display.units import bytes_text, flops_text
from convserve.errors import InvalidTensorError, InvalidWeightsError, naming_layer
from convserve.initializers import Initializer, Orthogonal
from convserve.layers.arguments import DTYPE_POLICIES, DataFormat, Padding, Pair
from convserve.layers.on_cpu import held_bytes, in_float64
from convserve.regularizers import Regularizer
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES, Shape, checked_shape, itemsize, standard_dtype

_SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a plan.

    Attributes:
        output_shape: The shape of this layer's output.
        kernel_shape: (kernel height, kernel width, input channels / groups, filters).
        parameters: The number of weights, kernel and bias.
        flops: 2 per kernel weight and place of the output, taps on padding included; 1 per bias added.
    """

    output_shape: Shape
    kernel_shape: Shape
    parameters: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """What a call would do.

    Attributes:
        layers: One plan per layer, in order.
        output_shape: The shape of the output.
        output_dtype: The name of the output's dtype.
        parameters: The number of weights of all layers.
        flops: Floating-point operations of all layers; activations are not counted.
        input_bytes: Bytes of the input's elements.
        weight_bytes: Bytes of all weights in their policy's weight type.
        output_bytes: Bytes of the output's elements.
        memory_bytes: An estimate of the most that a server on a CPU holds at once for the call, with what lies between
            a convolution and its activation. Weights that it draws, it has once more, and those of the largest layer
            once more (five times with orthogonal) while it draws them.
        admitted: Whether the server would take the call as one; None if no server was asked. Where it would not, a
            client sends the batch in parts, down to single samples: ask for the plan of one sample.
        refusal: Where it would not: the error text that the call would get.
    """

    layers: tuple[LayerPlan, ...]
    output_shape: Shape
    output_dtype: str
    parameters: int
    flops: int
    input_bytes: int
    weight_bytes: int
    output_bytes: int
    memory_bytes: int
    admitted: bool | None = None
    refusal: str | None = None

    def _repr_html_(self) -> str:
        """Returns a table for notebooks, and for a chain a second one of its layers."""
        one = len(self.layers) == 1
        rows: list[html_tables.Row] = [
            ("output", f"{self.output_shape} {self.output_dtype}, {bytes_text(self.output_bytes)}"),
            ("input", bytes_text(self.input_bytes)),
            ("kernel", self.layers[0].kernel_shape) if one else ("layers", len(self.layers)),
            ("parameters", f"{self.parameters:,}, {bytes_text(self.weight_bytes)}"),
            ("work", flops_text(self.flops)),
            ("memory", f"{bytes_text(self.memory_bytes)} at once on the server, at least"),
        ]
        if self.admitted is not None:
            rows.append(("admitted", "yes" if self.admitted else f"no: {self.refusal}"))
        text = html_tables.table("Plan", rows)
        if one:
            return text
        columns = ("layer", "kernel", "output", "parameters", "work")
        steps = (
            (index, step.kernel_shape, step.output_shape, f"{step.parameters:,}", flops_text(step.flops))
            for index, step in enumerate(self.layers)
        )
        return text + html_tables.grid(columns, steps)


@dataclass(frozen=True, init=False)
class Geometry:
    """Those of Conv2D's parameters that decide what a call would do; `Conv2D` says what each one is."""

    filters: int
    kernel_size: Pair
    strides: Pair
    padding: Padding
    data_format: DataFormat
    dilation_rate: Pair
    groups: int
    activation: Activation
    use_bias: bool
    kernel_initializer: Initializer
    activity_regularizer: Regularizer | None
    dtype: str
    input_shape: tuple[int | None, ...] | None

    @property
    def compute_dtype(self) -> str:
        """The name of the dtype in which is computed, and that the output has."""
        return DTYPE_POLICIES[self.dtype][0]

    @property
    def variable_dtype(self) -> str:
        """The name of the dtype in which weights are kept."""
        return DTYPE_POLICIES[self.dtype][1]

    @property
    def strides_and_dilates(self) -> bool:
        """Whether both a stride and a dilation are above 1, which only explicit padding has."""
        return max(self.strides) > 1 and max(self.dilation_rate) > 1

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the output for an input of this shape, both with the batch axis.

        Raises InvalidTensorError if the layer cannot take such an input.
        """
        return self.plan(input_shape).output_shape

    def plan(
        self, input_shape: Sequence[int] | None = None, *, input_dtype: Any = "float32", output_dtype: Any = None
    ) -> Plan:
        """Returns what a call would do; see `layers.plan.plan`. Nothing is computed, and no server is asked."""
        return plan([self], input_shape, input_dtype=input_dtype, output_dtype=output_dtype)


def plan(
    layers: Sequence[Geometry],
    input_shape: Sequence[int] | None = None,
    *,
    input_dtype: Any = "float32",
    output_dtype: Any = None,
    drawn: Sequence[bool] | None = None,
    channels: Sequence[int | None] | None = None,
) -> Plan:
    """Returns what a call with these layers, in order, would do.

    Args:
        layers: At least one configuration.
        input_shape: Four dimensions with the batch axis. None: one sample of the first layer's own `input_shape`.
        input_dtype: The input's dtype.
        output_dtype: The dtype asked for; None for the last layer's compute dtype.
        drawn: Of each layer, whether the server draws its weights for the call, as it does where none are given.
        channels: Of each layer, the input channels that its weights are for; None where it can be given any.

    Raises InvalidTensorError if a layer cannot take its input. With several layers, fields begin with "layers[i].".
    """
    shape = _input_shape(layers[0], input_shape)
    input_elements = math.prod(shape)
    input_bytes = input_elements * itemsize(standard_dtype(input_dtype, "input_dtype", INPUT_DTYPES))
    last = layers[-1].compute_dtype
    output_name = last if output_dtype is None else standard_dtype(output_dtype, "output_dtype", FLOAT_DTYPES)
    planned, largest_step, weight_bytes, drawn_bytes, drawing_bytes = [], 0, 0, 0, 0
    for index, conv2d in enumerate(layers):
        with naming_layer(index, len(layers)):
            _check_channels(conv2d, shape, channels[index] if channels else None)
            step, held_bytes = _plan_layer(conv2d, shape)
        planned.append(step)
        largest_step = max(largest_step, held_bytes)
        own_bytes = step.parameters * itemsize(conv2d.variable_dtype)
        weight_bytes += own_bytes
        if drawn is None or drawn[index]:
            drawn_bytes += own_bytes
            drawing_bytes = max(drawing_bytes, own_bytes * drawing(conv2d))
        shape = step.output_shape
    output_bytes = math.prod(shape) * itemsize(output_name)
    whole = Plan(
        layers=tuple(planned),
        output_shape=shape,
        output_dtype=output_name,
        parameters=sum(step.parameters for step in planned),
        flops=sum(step.flops for step in planned),
        input_bytes=input_bytes,
        weight_bytes=weight_bytes,
        output_bytes=output_bytes,
        memory_bytes=input_bytes + weight_bytes + drawn_bytes + drawing_bytes + largest_step + output_bytes,
    )
    if max(whole.flops, whole.memory_bytes) >= 2**63:
        received = f"{whole.memory_bytes} bytes and {whole.flops} operations"
        raise InvalidTensorError.for_field("input", "a call of fewer than 2**63 bytes and operations", received)
    return whole


def drawing(conv2d: Geometry) -> int:
    """Returns how many times its weights a layer takes while they are drawn, beside them."""
    return 5 if isinstance(conv2d.kernel_initializer, Orthogonal) else 1  # of a matrix and its decomposition


def check_padded(layers: Sequence[Geometry], input_shape: Sequence[int] | None, plan: Plan) -> None:
    """Raises InvalidTensorError if a layer's padding makes its input longer than TensorFlow counts."""
    if all(isinstance(conv2d.padding, str) for conv2d in layers):  # as with most calls
        return
    shape = _input_shape(layers[0], input_shape)
    for index, (conv2d, step) in enumerate(zip(layers, plan.layers, strict=True)):
        for direction, amounts in () if isinstance(conv2d.padding, str) else enumerate(conv2d.padding):
            size = shape[direction + (1 if conv2d.data_format == "channels_last" else 2)]
            if size + sum(amounts) >= 2**31:
                side, letter = (("height", "rows"), ("width", "columns"))[direction]
                expected = f"a {side} below 2**31 with the padding"
                received = f"{size} {letter} and {amounts} of padding"
                with naming_layer(index, len(layers)):
                    raise InvalidTensorError.for_field("padding", expected, received)
        shape = step.output_shape


def _input_shape(conv2d: Geometry, shape: Sequence[int] | None) -> Shape:
    """Returns an input's shape, by default one sample's; raises InvalidTensorError unless it has four dimensions."""
    if shape is None:
        if conv2d.input_shape is None or None in conv2d.input_shape:
            expected = "an input shape, or a Conv2D whose input_shape leaves no dimension open"
            raise InvalidTensorError.for_field("input_shape", expected, "neither")
        shape = (1, *(size for size in conv2d.input_shape if size is not None))
    sizes = checked_shape(shape, "input")
    if len(sizes) != 4:
        received = f"{len(sizes)}: shape {sizes}"
        picture = "x[None, :, :, None]" if conv2d.data_format == "channels_last" else "x[None, None]"
        hints = {2: f"{picture} is a batch of one sample of one channel.", 3: "x[None] is a batch of one sample."}
        raise InvalidTensorError.for_field(
            "input", "4 dimensions, the first being the batch", received, hints.get(len(sizes), "")
        )
    return sizes


def channel_axis(conv2d: Geometry) -> int:
    """Returns the axis of the channels in a layer's input and output."""
    return 3 if conv2d.data_format == "channels_last" else 1


def output_channels(conv2d: Geometry) -> int:
    """Returns the channels of a layer's output: its filters, or half of them where glu halves these."""
    activation = conv2d.activation
    is_halved = isinstance(activation, GLU) and activation.axis % 4 == channel_axis(conv2d)
    return conv2d.filters // 2 if is_halved else conv2d.filters


def window(conv2d: Geometry, direction: int) -> int:
    """Returns how many rows (direction 0) or columns (direction 1) a kernel spans."""
    return (conv2d.kernel_size[direction] - 1) * conv2d.dilation_rate[direction] + 1


def padding_amounts(conv2d: Geometry, size: int, direction: int) -> Pair:
    """Returns the zeros before and after an input of so many rows or columns, by TensorFlow's rule for "same"."""
    if not isinstance(conv2d.padding, str):
        return conv2d.padding[direction]
    stride = conv2d.strides[direction]
    total = max(0, (-(-size // stride) - 1) * stride + window(conv2d, direction) - size)
    return (0, 0) if conv2d.padding == "valid" else (total // 2, total - total // 2)


def kernel_shape(conv2d: Geometry, input_channels: int) -> Shape:
    """Returns (kernel height, kernel width, input channels / groups, filters), in both data formats."""
    return (*conv2d.kernel_size, input_channels // conv2d.groups, conv2d.filters)


def parameter_count(conv2d: Geometry, shape: Shape) -> int:
    """Returns the number of a layer's weights, with a kernel of this shape."""
    return math.prod(shape) + (conv2d.filters if conv2d.use_bias else 0)


def _check_channels(conv2d: Geometry, shape: Shape, wanted: int | None) -> None:
    """Raises InvalidArgumentError for an input of other channels than the kernel takes, or than groups divide."""
    axis, where = channel_axis(conv2d), f"(input shape {shape}, data_format='{conv2d.data_format}')"
    channels = shape[axis]
    if wanted is not None and channels != wanted:
        order = (0, 2, 3, 1) if axis == 3 else (0, 3, 1, 2)
        hint = f"Axis {4 - axis} has {wanted}: x.transpose{order} is {conv2d.data_format}."
        expected, received = f"as many channels as the layer's kernel takes, {wanted}", f"{channels} {where}"
        raise InvalidWeightsError.for_field("input", expected, received, hint if shape[4 - axis] == wanted else "")
    if channels % conv2d.groups:
        received = f"groups={conv2d.groups}, but the input has {channels} channels {where}"
        raise InvalidTensorError.for_field("groups", "a number that divides the input's channels", received)


def _plan_layer(conv2d: Geometry, input_shape: Shape) -> tuple[LayerPlan, int]:
    """Returns one layer's plan, and how many bytes of input, weights, output and what is between exist at once."""
    axis = channel_axis(conv2d)
    channels = input_shape[axis]
    batch, height, width = input_shape[0], _positions(conv2d, input_shape, 0), _positions(conv2d, input_shape, 1)
    sides = (height, width)
    convolved = (batch, *sides, conv2d.filters) if axis == 3 else (batch, conv2d.filters, *sides)
    kernel = kernel_shape(conv2d, channels)
    biases = conv2d.filters if conv2d.use_bias else 0
    flops = batch * height * width * (2 * math.prod(kernel) + biases)
    weights = parameter_count(conv2d, kernel)
    step = LayerPlan(_activated_shape(conv2d, convolved), kernel, weights, flops)
    wide = in_float64(conv2d, channels)
    wide = width == 1 if wide is None else wide
    return step, held_bytes(conv2d, math.prod(input_shape), weights, math.prod(convolved), wide)


def _positions(conv2d: Geometry, input_shape: Shape, direction: int) -> int:
    """Returns the output's size along the height (direction 0) or the width (direction 1)."""
    size = input_shape[direction + (1 if conv2d.data_format == "channels_last" else 2)]
    stride = conv2d.strides[direction]
    if conv2d.padding == "same":
        return -(-size // stride)
    padding, spanned = sum(padding_amounts(conv2d, size, direction)), window(conv2d, direction)
    if size + padding < spanned:
        side, letter = (("height", "rows"), ("width", "columns"))[direction]
        padded = f" and {padding} {letter} of padding" if padding else ""
        expected = (
            f"a {side} of at least {spanned - padding}, as kernel_size={conv2d.kernel_size} with "
            f"dilation_rate={conv2d.dilation_rate}{padded} needs"
        )
        received = f"{side} {size} (input shape {input_shape}, data_format='{conv2d.data_format}')"
        hint = "" if conv2d.strides_and_dilates else "padding='same' would take it."
        raise InvalidTensorError.for_field("input", expected, received, hint)
    return (size + padding - spanned) // stride + 1


def _activated_shape(conv2d: Geometry, shape: Shape) -> Shape:
    activation = conv2d.activation
    if not isinstance(activation, GLU | Sparsemax):
        return shape
    axis, expected = activation.axis % 4, ""
    if isinstance(activation, GLU):
        if shape[axis] % 2:
            expected = f"an even axis {activation.axis}, which glu halves"
    elif not _is_counted(shape[axis], conv2d.compute_dtype):
        most = 2 ** _SIGNIFICANT_BITS[conv2d.compute_dtype] - 1
        expected = f"an axis {activation.axis} that Keras' sparsemax can count in {conv2d.compute_dtype}, up to {most}"
    if expected:
        received = f"{shape[axis]} (shape {shape} before the activation, data_format='{conv2d.data_format}')"
        raise InvalidTensorError.for_field("activation", expected, received)
    return (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :]) if isinstance(activation, GLU) else shape


def _is_counted(size: int, dtype: str) -> bool:
    """Returns whether the numbers from 1 to a size are as many in a dtype.

    Keras' sparsemax numbers its axis so, and cannot compute where some are missing or too many.
    """

    def rounded(number: int) -> int:
        unit = 1 << max(0, number.bit_length() - _SIGNIFICANT_BITS[dtype])
        return round(Fraction(number, unit)) * unit  # half to even

    is_finite = dtype != "float16" or size < 2**16
    return is_finite and rounded(rounded(size + 1) - 1) == size
