"""What weights take, and whether given ones fit a configuration and an input: shapes and dtypes."""

from __future__ import annotations

import numpy as np

from convserve.display import html_tables
from convserve.display.units import bytes_text
from convserve.errors import InvalidWeightsError, short_repr
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import kernel_shape, parameter_count
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape, itemsize, name_of, numpy_dtype

WEIGHT_DTYPES = (*FLOAT_DTYPES, "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
"""Names of the element types that given weights may have."""


def weight_bytes(config: Conv2D, shape: Shape, dtype: str = "") -> int:
    """Returns the bytes of a layer's weights with a kernel of this shape, in the policy's dtype or another."""
    return parameter_count(config, shape) * itemsize(dtype or config.variable_dtype)


def weight_rows(config: Conv2D, shape: Shape | None) -> list[html_tables.Row]:
    """Returns the rows of a notebook's table for a layer's weights; the shape is None before they are drawn."""
    if shape is None:
        return [("weights", "drawn by the server")]
    amounts = f"{parameter_count(config, shape):,}, {bytes_text(weight_bytes(config, shape))}"
    return [("kernel", f"{shape} {config.variable_dtype}"), ("parameters", amounts)]


def check_kernel_channels(config: Conv2D, shape: Shape, channels: int) -> None:
    """Raises InvalidWeightsError unless a kernel of this shape is made for an input of so many channels."""
    wanted = kernel_shape(config, channels)
    if shape != wanted:
        expected = (
            f"shape {wanted} = kernel_size + (input channels / groups, filters) for an input of {channels} channels "
            f"and groups={config.groups}"
        )
        raise InvalidWeightsError.for_field("kernel", expected, f"shape {shape}")


def check_weight_shapes(config: Conv2D, kernel_shape: Shape, has_bias: bool) -> None:
    """Raises InvalidWeightsError if a kernel's shape, or whether there is a bias, doesn't fit the configuration."""
    height, width = config.kernel_size
    if len(kernel_shape) != 4 or kernel_shape[:2] != (height, width) or kernel_shape[3] != config.filters:
        wanted = f"({height}, {width}, input channels / groups, {config.filters})"
        expected = f"shape {wanted}, as kernel_size and filters say"
        hint = ""
        if len(kernel_shape) == 4 and kernel_shape[2:] == (height, width) and kernel_shape[0] == config.filters:
            hint = "It looks like PyTorch's order (out, in, height, width): pass kernel.transpose(2, 3, 1, 0)."
        raise InvalidWeightsError.for_field("kernel", expected, f"shape {short_repr(kernel_shape)}", hint)
    if has_bias and not config.use_bias:
        raise InvalidWeightsError.for_field("bias", "no bias, as use_bias=False says", "one")
    if config.use_bias and not has_bias:
        expected = "a bias together with the kernel, as use_bias=True says"
        raise InvalidWeightsError.for_field("bias", expected, "none: pass bias=, or use_bias=False")


def check_bias_shape(config: Conv2D, shape: Shape) -> None:
    """Raises InvalidWeightsError if a bias' shape doesn't fit the configuration."""
    if shape != (config.filters,):
        raise InvalidWeightsError.for_field("bias", f"shape ({config.filters},)", f"shape {short_repr(shape)}")


def cast_weight(array: Array, field: str, dtype: str) -> Array:
    """Returns a weight as floating-point numbers of the named type.

    What is too large for float16 becomes infinite, as in Keras. Raises InvalidWeightsError for integers that the type
    does not have exactly.
    """
    with np.errstate(over="ignore"):
        cast: Array = array.astype(numpy_dtype(dtype), copy=False)
    if array.dtype.kind in "iu" and not _is_exact(array, cast.astype(np.float64)):
        received = f"{name_of(array)} numbers that it rounds: convert them first, for example with .astype('{dtype}')"
        raise InvalidWeightsError.for_field(field, f"integers that {dtype} has exactly", received)
    return cast


def _is_exact(integers: Array, numbers: Array) -> bool:
    """Returns whether float64 numbers are these integers."""
    info = np.iinfo(integers.dtype)
    # float64 has both bounds, but not each integer of 64 bits: so they are compared as integers, where they are some.
    if not ((numbers >= float(info.min)) & (numbers < float(info.max + 1))).all():
        return False
    return np.array_equal(numbers.astype(integers.dtype), integers)
