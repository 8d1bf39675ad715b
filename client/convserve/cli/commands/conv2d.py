"""`convserve conv2d`: apply a layer to an array or a picture."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convserve.cli.options.connection import add_connection_options, connect
from convserve.cli.options.layer import add_layer_options, given_parameters
from convserve.cli.options.layer_reference import REFERENCE, find
from convserve.cli.options.values import channels, value_range
from convserve.cli.options.weights import add_weight_options, classic_kernel_list, layer_for
from convserve.cli.output.report import print_json, print_rows, shape_text
from convserve.display.pixels import MAX_MAPS, chosen, finite_range, is_picture
from convserve.display.units import bytes_text, duration_text
from convserve.files.arrays import check_destination, save_array
from convserve.files.images import Rendered, check_picture, write_picture
from convserve.files.inputs import read_input
from convserve.layers.arguments import standard_data_format
from convserve.layers.plan import channel_axis
from convserve.tensors.codec import FLOAT_DTYPES

if TYPE_CHECKING:
    from convserve import Client, Conv2D, Layer, Result, StoredLayer
    from convserve.tensors.codec import Array

HELP = "apply a Conv2D layer to an array or a picture"

_DESCRIPTION = """\
Sends a Conv2D layer and an input to the server, and shows what comes back: the
output's shape, range, losses, times. The layer's parameters are those of
keras.layers.Conv2D, under Keras' names; its weights are drawn with the
initializers, or given with --kernel."""

_EPILOG = f"""\
classic kernels, for --kernel:
{classic_kernel_list()}

examples:
  edges of a photo, as a picture (each channel by itself, so RGB stays RGB):
    convserve conv2d photo.jpg --kernel sobel-x --picture edges.png

  a sharper photo with the brightness of the original:
    convserve conv2d photo.jpg --kernel sharpen --picture sharp.jpg \\
      --picture-range 0,255

  64 random filters with ReLU, as an array and as a grid of feature maps:
    convserve conv2d photo.jpg --filters 64 --kernel-size 3 --strides 2 \\
      --padding same --activation relu --seed 0 -o maps.npy --picture maps.png

  weights of your own, saved with numpy.save:
    convserve conv2d x.npy --kernel kernel.npy --bias bias.npy -o y.npy

  an initializer and a regularizer with parameters; the loss is printed:
    convserve conv2d x.npy --filters 8 --kernel-size 3x5 \\
      --kernel-initializer '{{"class_name": "HeNormal", "config": {{"seed": 3}}}}' \\
      --kernel-regularizer '{{"class_name": "L2", "config": {{"l2": 0.1}}}}'

  a layer that is stored, such as one of an imported model:
    convserve conv2d photo.jpg --layer resnet50/conv1_conv --picture maps.png

  one array out of several in an archive, on another machine, for a program:
    convserve conv2d data.npz:images --filters 4 --kernel-size 3 \\
      --target gpu-host:50051 --json"""

_WEIGHTS = ("kernel", "bias", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    # The generated usage would list thirty options before the first word of explanation.
    parser.usage = (
        "%(prog)s INPUT --filters N --kernel-size N [OPTIONS]\n       %(prog)s INPUT --kernel NAME|FILE [OPTIONS]\n"
        "       %(prog)s INPUT --layer NAME|DIGEST [OPTIONS]"
    )
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a .npy file, a .npz file (file.npz:name picks one array), or a PNG or JPEG picture; "
        "an array of one sample may leave out its batch axis",
    )
    parser.add_argument(
        "--layer", metavar="NAME|DIGEST", help=f"a layer that the server stores (see `convserve layers`): {REFERENCE}"
    )
    add_layer_options(parser)
    add_weight_options(parser)
    outputs = parser.add_argument_group("output")
    outputs.add_argument("-o", "--output", metavar="FILE.npy", help="write the output as an array")
    outputs.add_argument(
        "--picture",
        metavar="FILE.png",
        help=f"draw the output: 1 or 3 channels as a picture, scaled from its least to its greatest value; "
        f"other numbers as a grid of up to {MAX_MAPS} feature maps beside the input (.png or .jpg)",
    )
    outputs.add_argument(
        "--picture-range",
        type=value_range,
        metavar="LOW,HIGH|shared",
        help="draw LOW black and HIGH white, such as 0,255 or, with a minus, --picture-range=-1,1; shared: one scale "
        "for all maps (default: the least and the greatest value, of each map by itself)",
    )
    outputs.add_argument(
        "--picture-channels",
        type=channels,
        metavar="N[-N],...",
        help=f"draw these channels, such as 64-127, as a grid (default: the first {MAX_MAPS})",
    )
    outputs.add_argument(
        "--picture-input",
        action=argparse.BooleanOptionalAction,
        help="draw the input beside the output, or not (default: beside a grid)",
    )
    outputs.add_argument(
        "--sample", type=int, default=0, metavar="N", help="which sample of the batch to draw (default: %(default)s)"
    )
    outputs.add_argument(
        "--output-dtype", choices=FLOAT_DTYPES, help="the output's type (default: that of the computation)"
    )
    outputs.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_connection_options(parser, timeout=60.0)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    with connect(arguments) as client:
        stored = None if arguments.layer is None else _stored_layer(arguments, client)
        data_format = standard_data_format(arguments.data_format) if stored is None else stored.config.data_format
        x = read_input(arguments.input, data_format)
        if arguments.output is not None:
            check_destination(arguments.output, (".npy",), "output")
        if arguments.picture is not None:
            check_picture(arguments.picture, arguments.sample, x.shape[0])
        layer = stored or layer_for(arguments, x.shape[-1 if data_format == "channels_last" else 1])
        if arguments.picture_channels is not None:
            made = layer.config.output_shape(x.shape)[channel_axis(layer.config)]
            chosen(arguments.picture_channels, made, MAX_MAPS, "picture_channels")
        start = time.perf_counter()
        result = client.convolve(layer, x, output_dtype=arguments.output_dtype)
        total_us = (time.perf_counter() - start) * 1e6
    drawn = None
    if arguments.output is not None:
        save_array(arguments.output, result.output)
    if arguments.picture is not None:
        title = f"{Path(arguments.input).name}: output {result.output.shape}"
        title += f", sample {arguments.sample}" if x.shape[0] > 1 else ""
        drawn = write_picture(
            arguments.picture,
            result.output,
            data_format=data_format,
            sample=arguments.sample,
            channels=arguments.picture_channels,
            value_range=arguments.picture_range,
            beside=x if _wants_input(arguments, result.output, data_format) else None,
            title=title,
        )
    if arguments.json:
        print_json(_document(arguments, x, result, total_us))
    else:
        _print_summary(arguments, x, layer, result, total_us, drawn)
    return 0


def _stored_layer(arguments: argparse.Namespace, client: Client) -> StoredLayer:
    """Returns the layer that `--layer` names; options that describe another one beside it end the program."""
    given = [*given_parameters(arguments), *(name for name in _WEIGHTS if getattr(arguments, name) is not None)]
    for name in given:
        flag = "--no-bias" if name == "use_bias" else "--" + name.replace("_", "-")
        arguments.refuse(f"argument {flag}: not allowed with --layer: the stored layer has it already")
    return find(client, arguments.layer)


def _wants_input(arguments: argparse.Namespace, output: Array, data_format: str) -> bool:
    """Returns whether the input is drawn beside the output: a picture alone is one that can be used further."""
    if arguments.picture_input is not None:
        return bool(arguments.picture_input)
    maps = output.shape[-1 if data_format == "channels_last" else 1]
    return arguments.picture_channels is not None or not is_picture(maps)


def _print_summary(
    arguments: argparse.Namespace,
    x: Array,
    layer: Layer | StoredLayer,
    result: Result,
    total_us: float,
    drawn: Rendered | None,
) -> None:
    output = result.output
    low, high = _range(output)
    strange = output.size - int(np.count_nonzero(np.isfinite(output)))
    values = f"{low:.6g} to {high:.6g}"
    if strange:
        values = "no finite value" if math.isnan(low) else f"{values}; {strange} not finite"
    computing, waiting = duration_text(result.timing.compute_us), duration_text(result.timing.queue_us)
    times = f"{duration_text(total_us)}: the server computed for {computing}, after a wait of {waiting}"
    if not result.warm:
        times += "\n(its first call with this geometry; the next will be faster)"
    print_rows(
        [
            ("input", shape_text(x.shape, x.dtype.name)),
            ("output", f"{shape_text(output.shape, output.dtype.name)}, {bytes_text(output.nbytes)}"),
            ("range", values),
            ("losses", ", ".join(f"{name} {value:.6g}" for name, value in _losses(result).items())),
            ("seed", _picked_seed(layer.config, result)),
            ("time", times),
            ("device", result.device),
            ("written", "\n".join(_written(arguments, output, drawn))),
        ]
    )


def _written(arguments: argparse.Namespace, output: Array, drawn: Rendered | None) -> list[str]:
    """Returns a line for each file, with what one should know of it."""
    lines = []
    if arguments.output is not None:
        cast = " (as float32: the format has no bfloat16)" if output.dtype.name == "bfloat16" else ""
        lines.append(arguments.output + cast)
    if drawn is not None and drawn.kind == "picture":
        scale = "no finite value" if math.isnan(drawn.low) else f"black is {drawn.low:.6g}, white is {drawn.high:.6g}"
        lines.append(f"{arguments.picture} ({scale})")
    elif drawn is not None:
        first = "" if arguments.picture_channels else "the first "
        some = "all" if drawn.maps_shown == drawn.maps else f"{first}{drawn.maps_shown} of"
        scale = "each scaled by itself"
        if arguments.picture_range is not None:
            scale = f"dark is {drawn.low:.6g}, bright is {drawn.high:.6g}"
        lines.append(f"{arguments.picture} ({some} {drawn.maps} feature maps, {scale})")
    return lines


def _document(arguments: argparse.Namespace, x: Array, result: Result, total_us: float) -> dict[str, Any]:
    output = result.output
    low, high = _range(output)
    return {
        "input": {"path": arguments.input, "shape": x.shape, "dtype": x.dtype.name},
        "output": {
            "shape": output.shape,
            "dtype": output.dtype.name,
            "bytes": output.nbytes,
            "min": low,
            "max": high,
            "not_finite": output.size - int(np.count_nonzero(np.isfinite(output))),
        },
        "losses": _losses(result),
        "seeds": _seeds(result.layers[0]),
        "timing": {
            "total_us": round(total_us),
            "queue_us": result.timing.queue_us,
            "compute_us": result.timing.compute_us,
        },
        "batch_size": result.batch_size,
        "device": result.device,
        "warm": result.warm,
        "files": [path for path in (arguments.output, arguments.picture) if path is not None],
    }


def _range(output: Array) -> tuple[float, float]:
    return finite_range(output.astype(np.float32) if output.dtype.name == "bfloat16" else output)


def _losses(result: Result) -> dict[str, float]:
    losses = result.losses[0]
    named = {"kernel": losses.kernel, "bias": losses.bias, "activity": losses.activity}
    return {name: value for name, value in named.items() if value is not None}


def _seeds(config: Conv2D | None) -> dict[str, int]:
    """Returns the seeds of a layer whose weights were drawn, by weight."""
    if config is None:
        return {}
    initializers = {"kernel": config.kernel_initializer, "bias": config.bias_initializer}
    seeds = {name: each.parameters.get("seed") for name, each in initializers.items()}
    return {name: seed for name, seed in seeds.items() if seed is not None}


def _picked_seed(sent: Conv2D, result: Result) -> str:
    """Returns how to get the same weights again where the server picked a seed, otherwise nothing."""
    given = _seeds(sent)
    picked = {name: seed for name, seed in _seeds(result.layers[0]).items() if name not in given}
    if len(set(picked.values())) == 1:
        return f"{next(iter(picked.values()))}, picked by the server: with --seed it draws the same weights again"
    return ", ".join(f"{name} {seed}" for name, seed in picked.items())
