"""The options that give a layer its weights, and the layer that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convserve.cli.options.layer import given_parameters, require
from convserve.errors import FieldViolation, InvalidWeightsError
from convserve.files.arrays import ARRAY_SUFFIXES, load_array
from convserve.layers.classic_kernels import CLASSIC_KERNELS, classic_kernel

if TYPE_CHECKING:
    from convserve import Layer

Array = npt.NDArray[Any]


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--kernel`, `--bias` and `--seed`."""
    group = parser.add_argument_group("weights", "Without --kernel, the server draws weights with the initializers.")
    group.add_argument(
        "--kernel",
        metavar="NAME|FILE",
        help="a classic kernel, listed below, that filters each channel by itself; or a .npy file with a kernel of "
        "shape (height, width, channels / groups, filters); or one of shape (height, width), used like a classic one",
    )
    group.add_argument("--bias", metavar="FILE", help="a .npy file with a bias of shape (filters,); needs --kernel")
    group.add_argument(
        "--seed", type=int, metavar="N", help="draw the same weights each time (default: the server picks)"
    )


def classic_kernel_list() -> str:
    """Returns the classic kernels with a line for each, for a help text."""
    width = max(map(len, CLASSIC_KERNELS))
    return "\n".join(f"  {name:<{width}}  {each.description}" for name, each in CLASSIC_KERNELS.items())


def layer_for(arguments: argparse.Namespace, channels: int) -> Layer:
    """Returns the layer that the options describe.

    Args:
        arguments: The options of `add_layer_options` and `add_weight_options`.
        channels: The channels of the input, for which a kernel of one channel is repeated.

    Raises:
        InvalidConfigurationError: For a wrong parameter or an unknown classic kernel.
        InvalidWeightsError: For weights that don't fit.
        InvalidTensorError: For a file that cannot be read.
    """
    from convserve import Conv2D, Layer

    parameters = given_parameters(arguments)
    if arguments.kernel is None:
        if arguments.bias is not None:
            arguments.refuse("--bias needs --kernel: drawn weights have a drawn bias")
        require(arguments, "--filters", "--kernel-size")
        drawn = Conv2D(**parameters)
        return Layer(drawn if arguments.seed is None else drawn.with_seed(arguments.seed))
    _refuse(arguments, ("filters", "kernel_size"), "the kernel has it already")
    _refuse(arguments, ("seed", "kernel_initializer", "bias_initializer"), "weights that are given are not drawn")
    if arguments.bias is not None:
        _refuse(arguments, ("use_bias",), "--bias gives one")
    if _is_file(arguments.kernel):
        kernel = _weights(arguments.kernel, "kernel")
        if kernel.ndim == 2:
            kernel = np.repeat(kernel[:, :, np.newaxis, np.newaxis], channels, axis=3)
            per_channel = True
        else:
            per_channel = False
    else:
        kernel, per_channel = classic_kernel(arguments.kernel, channels), True
    if kernel.ndim != 4:
        expected = "Expected shape (height, width, channels / groups, filters), or (height, width)"
        raise InvalidWeightsError(FieldViolation("kernel", f"{expected}. Received shape {kernel.shape}."))
    if per_channel:
        _refuse(arguments, ("groups",), "this kernel filters each channel by itself")
        # A picture that is filtered should keep its size.
        parameters = {"padding": "same", **parameters, "groups": channels}
    bias = None if arguments.bias is None else _weights(arguments.bias, "bias")
    given = {"filters": kernel.shape[3], "kernel_size": kernel.shape[:2], "use_bias": bias is not None}
    return Layer(Conv2D(**(parameters | given)), kernel, bias)


def _is_file(kernel: str) -> bool:
    return kernel not in CLASSIC_KERNELS and (
        kernel.endswith(ARRAY_SUFFIXES) or ".npz:" in kernel or "/" in kernel or Path(kernel).exists()
    )


def _weights(path: str, field: str) -> Array:
    """Returns the weights in a file; integers, as a kernel typed by hand often has, become float32."""
    array = load_array(path, field)
    return array.astype(np.float32) if array.dtype.kind in "iub" else array


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Ends the program with a usage error if one of the options was given beside `--kernel`."""
    for name in names:
        if getattr(arguments, name) is not None:
            flag = "--no-bias" if name == "use_bias" else "--" + name.replace("_", "-")
            arguments.refuse(f"argument {flag}: not allowed with --kernel: {reason}")
