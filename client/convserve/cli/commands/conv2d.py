"""`convserve conv2d`: apply a layer to an array or a picture."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import click

from convserve.cli.command import OPTIONS, OUTPUT, new_command, options_as_one
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import Parameters, layer_options, output_dtype_option, refuse
from convserve.cli.options.layer_reference import REFERENCE, find
from convserve.cli.options.values import channels, value_range
from convserve.cli.options.weights import Weights, classic_kernel_list, layer_for, weight_options
from convserve.cli.output import conv2d_summary
from convserve.cli.output.report import print_result
from convserve.display.pixels import MAX_MAPS, chosen, is_picture
from convserve.files.arrays import check_destination, save_array
from convserve.files.images import Rendered, check_picture, write_picture
from convserve.files.inputs import read_input
from convserve.layers.arguments import standard_data_format
from convserve.layers.plan import channel_axis
from convserve.tensors.codec import Array


@new_command("conv2d", kernels=classic_kernel_list())
@click.argument(
    "input",
    metavar="INPUT",
    help="a .npy file, a .npz file (file.npz:name picks one array), or a picture (PNG, JPEG, WebP, TIFF, BMP, GIF); an "
    "array of one sample may leave out its batch axis",
)
@OPTIONS.option(
    "--layer NAME|DIGEST", f"a layer that the server stores (see `convserve layers`): {REFERENCE}", dest="reference"
)
@layer_options()
@weight_options
@options_as_one(
    "files",
    SimpleNamespace,
    OUTPUT.option("-o --output FILE.npy", "write the output as an array"),
    OUTPUT.option(
        "--picture FILE.png",
        f"draw the output: 1 or 3 channels as a picture, scaled from its least to its greatest value; "
        f"other numbers as a grid of up to {MAX_MAPS} feature maps beside the input (.png or .jpg)",
    ),
    OUTPUT.option(
        "--picture-range LOW,HIGH|shared",
        "draw LOW black and HIGH white, such as 0,255 or -1,1; shared: one scale for all maps (default: the least "
        "and the greatest value, of each map by itself)",
        type=value_range,
    ),
    OUTPUT.option(
        "--picture-channels N[-N],...",
        f"draw these channels, such as 64-127, as a grid (default: the first {MAX_MAPS})",
        type=channels,
    ),
    OUTPUT.option(
        "--picture-input/--no-picture-input",
        "draw the input beside the output, or not (default: beside a grid)",
        default=None,
    ),
    OUTPUT.option("--sample N", "which sample of the batch to draw (default: 0)", type=int, default=0),
)
@output_dtype_option(OUTPUT)
@OUTPUT.option("--json", "print the summary as JSON", dest="as_json", is_flag=True)
@connection_options(timeout=60.0)
def command(
    input: str,  # noqa: A002 (the name of the field in errors)
    reference: str | None,
    parameters: Parameters,
    weights: Weights,
    files: SimpleNamespace,
    output_dtype: str | None,
    as_json: bool,
    connection: Connection,
) -> None:
    stored = None
    with connection.client() as client:
        if reference is not None:
            options = {**parameters, **weights._asdict()}
            refuse(options, tuple(options), "with --layer: the stored layer has it already")
            stored = find(client, reference)
        data_format = stored.config.data_format if stored else standard_data_format(parameters.get("data_format"))
        x = read_input(input, data_format)
        if files.output is not None:
            check_destination(files.output, (".npy",), "output")
        if files.picture is not None:
            check_picture(files.picture, files.sample, x.shape[0])
        layer = stored or layer_for(parameters, weights, x.shape[-1 if data_format == "channels_last" else 1])
        if files.picture_channels is not None:
            made = layer.config.output_shape(x.shape)[channel_axis(layer.config)]
            chosen(files.picture_channels, made, MAX_MAPS, "picture_channels")
        start = time.perf_counter()
        result = client.convolve(layer, x, output_dtype=output_dtype)
        total_us = (time.perf_counter() - start) * 1e6
    drawn = None
    if files.output is not None:
        save_array(files.output, result.output)
    if files.picture is not None:
        title = f"{Path(input).name}: output {result.output.shape}"
        title += f", sample {files.sample}" if x.shape[0] > 1 else ""
        with_input = files.picture_input
        if with_input is None:  # a picture alone is one that can be used further
            maps = result.output.shape[-1 if data_format == "channels_last" else 1]
            with_input = files.picture_channels is not None or not is_picture(maps)
        drawn = write_picture(
            files.picture,
            result.output,
            data_format=data_format,
            sample=files.sample,
            channels=files.picture_channels,
            value_range=files.picture_range,
            beside=x if with_input else None,
            title=title,
        )
    written = [path for path in (files.output, files.picture) if path is not None]
    document = conv2d_summary.document(input, x, result, total_us, written)
    lines = _written(files, result.output, drawn)
    print_result(conv2d_summary.rows(document, layer.config, lines), document, as_json=as_json)


def _written(files: SimpleNamespace, output: Array, drawn: Rendered | None) -> list[str]:
    """Returns a line for each file, with what one should know of it."""
    lines = []
    if files.output is not None:
        cast = " (as float32: the format has no bfloat16)" if output.dtype.name == "bfloat16" else ""
        lines.append(files.output + cast)
    if drawn is not None and drawn.kind == "picture":
        scale = "no finite value" if math.isnan(drawn.low) else f"black is {drawn.low:.6g}, white is {drawn.high:.6g}"
        lines.append(f"{files.picture} ({scale})")
    elif drawn is not None:
        first = "" if files.picture_channels else "the first "
        some = "all" if drawn.maps_shown == drawn.maps else f"{first}{drawn.maps_shown} of"
        scale = "each scaled by itself"
        if files.picture_range is not None:
            scale = f"dark is {drawn.low:.6g}, bright is {drawn.high:.6g}"
        lines.append(f"{files.picture} ({some} {drawn.maps} feature maps, {scale})")
    return lines
