"""The options that describe a layer: the parameters of `keras.layers.Conv2D`, as flags with Keras' names."""

from __future__ import annotations

import argparse
from typing import Any

from convserve.cli.options.values import named_object, padding, pair

_PARAMETERS = (
    "filters",
    "kernel_size",
    "strides",
    "padding",
    "data_format",
    "dilation_rate",
    "groups",
    "activation",
    "use_bias",
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
    "name",
    "dtype",
)


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """Adds one flag for each of Conv2D's parameters.

    Their defaults are None, "not given", so that the defaults that hold are Conv2D's own.
    """
    shape = parser.add_argument_group("layer", "The parameters of keras.layers.Conv2D, with Keras' names and defaults.")
    shape.add_argument("--filters", type=int, metavar="N", help="number of output channels")
    shape.add_argument("--kernel-size", type=pair, metavar="N|H,W", help="size of the window, such as 3 or 3,5")
    shape.add_argument("--strides", type=pair, metavar="N|H,W", help="steps of the window (default: 1)")
    shape.add_argument(
        "--padding",
        type=padding,
        metavar="PADDING",
        help="valid, same, or rows and columns of zeros as top,bottom,left,right "
        "(default: valid; same for a kernel that filters each channel by itself)",
    )
    shape.add_argument(
        "--data-format",
        choices=("channels_last", "channels_first"),
        help="where the channels are, in input and output (default: that of keras.json, else channels_last)",
    )
    shape.add_argument(
        "--dilation-rate", type=pair, metavar="N|H,W", help="steps between the window's taps (default: 1)"
    )
    shape.add_argument("--groups", type=int, metavar="N", help="number of groups of channels (default: 1)")
    shape.add_argument(
        "--activation", type=named_object, metavar="NAME|JSON", help="function applied last (default: none)"
    )
    shape.add_argument("--no-bias", dest="use_bias", action="store_false", default=None, help="add no bias")
    shape.add_argument("--dtype", metavar="POLICY", help="float32, mixed_float16, ... (default: float32)")
    shape.add_argument("--name", metavar="TEXT", help="label of the layer (default: none)")

    named = parser.add_argument_group(
        "initializers, regularizers and constraints",
        "Keras' name such as he_normal, or JSON such as\n"
        """'{"class_name": "HeNormal", "config": {"seed": 3}}'.""",
    )
    for flag, text in (
        ("--kernel-initializer", "how the kernel is drawn (default: glorot_uniform)"),
        ("--bias-initializer", "how the bias is drawn (default: zeros)"),
        ("--kernel-regularizer", "penalty on the kernel, returned as a loss (default: none)"),
        ("--bias-regularizer", "penalty on the bias (default: none)"),
        ("--activity-regularizer", "penalty on the output (default: none)"),
        ("--kernel-constraint", "recorded; acts when weights are updated (default: none)"),
        ("--bias-constraint", "likewise (default: none)"),
    ):
        named.add_argument(flag, type=named_object, metavar="NAME|JSON", help=text)


def given_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the parameters that the flags give, as arguments for `convserve.Conv2D`; others are left out."""
    found = {name: getattr(arguments, name) for name in _PARAMETERS}
    return {name: value for name, value in found.items() if value is not None}


def require(arguments: argparse.Namespace, *flags: str) -> None:
    """Ends the program with a usage error if one of the flags was not given."""
    missing = [flag for flag in flags if getattr(arguments, flag[2:].replace("-", "_")) is None]
    if missing:
        arguments.refuse(f"the following arguments are required: {', '.join(missing)}")
