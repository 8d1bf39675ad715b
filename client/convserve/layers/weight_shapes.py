"""Whether given weights fit a configuration and an input: shapes and dtypes."""

from __future__ import annotations

import numpy as np

from convserve.errors import InvalidWeightsError, short_repr
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import kernel_shape
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape, name_of, numpy_dtype

WEIGHT_DTYPES = (*FLOAT_DTYPES, "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
"""Names of the element types that given weights may have."""


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
