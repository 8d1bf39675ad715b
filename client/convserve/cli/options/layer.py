"""The options that describe a layer: the parameters of `keras.layers.Conv2D`, as flags with Keras' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from convserve.cli.command import Section, in_order, options_as_one
from convserve.cli.options.values import named_object, padding, pair, shape
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES

Parameters = dict[str, Any]
"""The parameters that flags give, as arguments for `convserve.Conv2D`; others are left out."""

CALL = Section("call")
_SHAPE = Section("layer", "The parameters of keras.layers.Conv2D, with Keras' names and defaults.")
_NAMED = Section(
    "initializers, regularizers and constraints",
    """Keras' name such as he_normal, or JSON such as '{"class_name": "HeNormal", "config": {"seed": 3}}'.""",
)


_FORMATS = click.Choice(("channels_last", "channels_first"))
_OBJECT: Any = ("NAME|JSON", {"type": named_object})
_INTEGER: Any = ("N", {"type": int})
_PAIR: Any = ("N|H,W", {"type": pair})
_NO_BIAS = {"flag_value": False, "default": None}
_PADDING = "valid, same, PyTorch's amount N or H,W, or rows and columns of zeros as top,bottom,left,right (default: "
_PADDING += "valid; same for a kernel that filters each channel by itself)"
_DATA_FORMAT = "where the channels are, in input and output (default: that of keras.json, else channels_last)"

# By the names of Conv2D's parameters: section, help, what stands for a value, and click's attributes.
_OPTIONS: dict[str, tuple[Section, str, str, dict[str, Any]]] = {
    "filters": (_SHAPE, "number of output channels", *_INTEGER),
    "kernel_size": (_SHAPE, "size of the window, such as 3 or 3,5", *_PAIR),
    "strides": (_SHAPE, "steps of the window (default: 1)", *_PAIR),
    "padding": (_SHAPE, _PADDING, "PADDING", {"type": padding}),
    "data_format": (_SHAPE, _DATA_FORMAT, "", {"type": _FORMATS}),
    "dilation_rate": (_SHAPE, "steps between the window's taps (default: 1)", *_PAIR),
    "groups": (_SHAPE, "number of groups of channels (default: 1)", *_INTEGER),
    "activation": (_SHAPE, "function applied last (default: none)", *_OBJECT),
    "use_bias": (_SHAPE, "add no bias", "", _NO_BIAS),
    "dtype": (_SHAPE, "float32, mixed_float16, ... (default: float32)", "POLICY", {}),
    "name": (_SHAPE, "label of the layer (default: none)", "TEXT", {}),
    "kernel_initializer": (_NAMED, "how the kernel is drawn (default: glorot_uniform)", *_OBJECT),
    "bias_initializer": (_NAMED, "how the bias is drawn (default: zeros)", *_OBJECT),
    "kernel_regularizer": (_NAMED, "penalty on the kernel, returned as a loss (default: none)", *_OBJECT),
    "bias_regularizer": (_NAMED, "penalty on the bias (default: none)", *_OBJECT),
    "activity_regularizer": (_NAMED, "penalty on the output (default: none)", *_OBJECT),
    "kernel_constraint": (_NAMED, "recorded; acts when weights are updated (default: none)", *_OBJECT),
    "bias_constraint": (_NAMED, "likewise (default: none)", *_OBJECT),
}
PARAMETERS = tuple(_OPTIONS)
"""The parameters' names."""


def flag_of(name: str) -> str:
    """Returns the flag that gives a parameter."""
    return "--no-bias" if name == "use_bias" else "--" + name.replace("_", "-")


def layer_options(only: Iterable[str] = PARAMETERS, section: Section | None = None) -> Callable[[Any], Any]:
    """Returns a decorator that adds flags for Conv2D's parameters, or for some of them, perhaps in another section.

    The command gets those that are given as its argument `parameters`: the defaults are Conv2D's own.
    """
    rows = ((name, *_OPTIONS[name]) for name in only)
    options = (
        (section or own).option(f"{flag_of(name)} {value}".rstrip(), text, dest=name, **attributes)
        for name, own, text, value, attributes in rows
    )
    return options_as_one("parameters", _given, *options)


def _given(**values: Any) -> Parameters:
    return {name: value for name, value in values.items() if value is not None}


def output_dtype_option(section: Section) -> Callable[[Any], Any]:
    """Returns a decorator that adds `--output-dtype`."""
    text = "the output's type (default: that of the computation)"
    return section.option("--output-dtype", text, type=click.Choice(FLOAT_DTYPES))


def call_options(*, required: bool) -> Callable[[Any], Any]:
    """Returns a decorator that adds `--input-shape`, which may be required, `--input-dtype` and `--output-dtype`."""
    text = "the input's shape with its batch axis, such as 4,600,600,3 or 4x600x600x3"
    dtypes, default = click.Choice(INPUT_DTYPES), "the input's type (default: float32)"
    return in_order(
        CALL.option("--input-shape N,H,W,C", text, type=shape, required=required),
        CALL.option("--input-dtype", default, type=dtypes, default="float32"),
        output_dtype_option(CALL),
    )


def require(parameters: Parameters, *names: str) -> None:
    """Raises click.UsageError if one of these parameters is not given."""
    missing = [flag_of(name) for name in names if name not in parameters]
    if missing:
        raise click.UsageError(f"the following arguments are required: {', '.join(missing)}")


def refuse(parameters: Parameters, names: tuple[str, ...], reason: str) -> None:
    """Raises click.UsageError, with the reason, if one of these parameters is given."""
    for name in names:
        if parameters.get(name) is not None:
            raise click.UsageError(f"argument {flag_of(name)}: not allowed {reason}")
