"""Whether weights of some shapes fit a configuration and an input."""

from __future__ import annotations

from convserve.errors import FieldViolation, InvalidWeightsError, short_repr
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import kernel_shape
from convserve.tensors.codec import Shape


def check_kernel_channels(config: Conv2D, shape: Shape, channels: int) -> None:
    """Checks that a kernel of this shape is made for an input of so many channels.

    Raises:
        InvalidWeightsError: If it is not.
    """
    expected = kernel_shape(config, channels)
    if shape != expected:
        text = (
            f"Expected shape {expected} = kernel_size + (input channels / groups, filters) for an input of {channels} "
            f"channels and groups={config.groups}. Received shape {shape}."
        )
        raise InvalidWeightsError(FieldViolation("kernel", text))


def check_weight_shapes(config: Conv2D, kernel_shape: Shape, has_bias: bool) -> None:
    """Checks weights that are announced, before they are there.

    Raises:
        InvalidWeightsError: If the kernel's shape, or the presence of a bias, doesn't fit the configuration.
    """
    for field, text in (
        ("kernel", kernel_text(config, kernel_shape)),
        ("bias", bias_presence_text(config, has_bias)),
    ):
        if text:
            raise InvalidWeightsError(FieldViolation(field, text))


def bias_presence_text(config: Conv2D, has_bias: bool) -> str:
    """Returns what is wrong with the presence or absence of a bias, or nothing."""
    if has_bias == config.use_bias:
        return ""
    if has_bias:
        return "Expected no bias, as use_bias=False says. Received one."
    return (
        "Expected a bias together with the kernel, as use_bias=True says. Received none: pass bias=, or use_bias=False."
    )


def kernel_text(config: Conv2D, shape: Shape) -> str:
    """Returns what is wrong with a kernel's shape, or nothing."""
    height, width = config.kernel_size
    if len(shape) == 4 and shape[:2] == (height, width) and shape[3] == config.filters:
        return ""
    expected = f"shape ({height}, {width}, input channels / groups, {config.filters}), as kernel_size and filters say"
    hint = ""
    if len(shape) == 4 and shape[2:] == (height, width) and shape[0] == config.filters:
        hint = " It looks like PyTorch's order (out, in, height, width): pass kernel.transpose(2, 3, 1, 0)."
    return f"Expected {expected}. Received shape {short_repr(shape)}.{hint}"


def bias_text(config: Conv2D, shape: Shape) -> str:
    """Returns what is wrong with a bias' shape, or nothing."""
    return (
        "" if shape == (config.filters,) else f"Expected shape ({config.filters},). Received shape {short_repr(shape)}."
    )
