"""The options that give a layer its weights, and the layer that they make."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from convserve.cli.command import Section, options_as_one
from convserve.cli.options.layer import Parameters, refuse, require
from convserve.errors import InvalidWeightsError
from convserve.files.arrays import ARRAY_SUFFIXES, load_array
from convserve.layers.classic_kernels import CLASSIC_KERNELS, classic_kernel
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array

_WEIGHTS = Section("weights", "Without --kernel, the server draws weights with the initializers.")


class Weights(NamedTuple):
    """The values of the options."""

    kernel: str | None = None
    bias: str | None = None
    seed: int | None = None


weight_options = options_as_one(
    "weights",
    Weights,
    _WEIGHTS.option(
        "--kernel NAME|FILE",
        "a classic kernel, listed below, that filters each channel by itself, with --padding same unless that is given "
        "(client.conv2d in Python has valid); or a .npy file with a kernel of "
        "shape (height, width, channels / groups, filters); or one of shape (height, width), used like a classic one",
    ),
    _WEIGHTS.option("--bias FILE", "a .npy file with a bias of shape (filters,); needs --kernel"),
    _WEIGHTS.option("--seed N", "draw the same weights each time (default: the server picks)", type=int),
)
"""Adds the options, of which a command gets the `Weights` as its argument `weights`."""


def classic_kernel_list() -> str:
    """Returns the classic kernels with a line for each, for a help text."""
    width = max(map(len, CLASSIC_KERNELS))
    return "\n".join(f"  {name:<{width}}  {kernel.description}" for name, kernel in CLASSIC_KERNELS.items())


def layer_for(parameters: Parameters, weights: Weights, channels: int) -> Layer:
    """Returns the layer that the options describe, for an input of so many channels.

    Raises click.UsageError for options that contradict each other, and InvalidArgumentError for what does not fit.
    """
    if weights.kernel is None:
        if weights.bias is not None:
            raise click.UsageError("--bias needs --kernel: drawn weights have a drawn bias")
        require(parameters, "filters", "kernel_size")
        config = Conv2D(**parameters)
        return Layer(config if weights.seed is None else config.with_seed(weights.seed))
    options = {**parameters, **weights._asdict()}
    refuse(options, ("filters", "kernel_size"), "with --kernel: the kernel has it already")
    drawing = ("seed", "kernel_initializer", "bias_initializer")
    refuse(options, drawing, "with --kernel: weights that are given are not drawn")
    if weights.bias is not None:
        refuse(options, ("use_bias",), "with --bias, which gives one")
    is_file = _is_file(weights.kernel)
    kernel = _weights(weights.kernel, "kernel") if is_file else classic_kernel(weights.kernel, channels)
    per_channel = not is_file or kernel.ndim == 2
    if kernel.ndim == 2:
        kernel = np.repeat(kernel[:, :, np.newaxis, np.newaxis], channels, axis=3)
    if kernel.ndim != 4:
        expected = "shape (height, width, channels / groups, filters), or (height, width)"
        raise InvalidWeightsError.for_field("kernel", expected, f"shape {kernel.shape}")
    if per_channel:
        refuse(options, ("groups",), "with --kernel: this kernel filters each channel by itself")
        # A picture that is filtered should keep its size.
        parameters = {"padding": "same", **parameters, "groups": channels}
    bias = None if weights.bias is None else _weights(weights.bias, "bias")
    derived = {"filters": kernel.shape[3], "kernel_size": kernel.shape[:2], "use_bias": bias is not None}
    return Layer(Conv2D(**(parameters | derived)), kernel, bias)


def _is_file(kernel: str) -> bool:
    return kernel not in CLASSIC_KERNELS and (
        kernel.endswith(ARRAY_SUFFIXES) or ".npz:" in kernel or "/" in kernel or Path(kernel).exists()
    )


def _weights(path: str, field: str) -> Array:
    """Returns the weights in a file; integers, as a kernel typed by hand often has, become float32."""
    array = load_array(path, field)
    return array.astype(np.float32) if array.dtype.kind in "iub" else array
