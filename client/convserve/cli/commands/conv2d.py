"""`convserve conv2d`: apply a layer to an array or a picture."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import click

import convserve
from convserve.cli.command import OPTIONS, OUTPUT, new_command, options_as_one
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import Parameters, layer_options, output_dtype_option, refuse
from convserve.cli.options.layer_reference import REFERENCE, find_alone
from convserve.cli.options.values import channels, limits_or, percentiles
from convserve.cli.options.weights import Weights, classic_kernel_list, layer_for, weight_options
from convserve.cli.output import conv2d_summary
from convserve.cli.output.report import print_result
from convserve.display import pixels
from convserve.files.arrays import save_array
from convserve.files.images import Rendered, check_picture, write_picture
from convserve.files.inputs import read_input
from convserve.files.layers import LAYER_SUFFIXES, save_layer
from convserve.files.writing import check_destination
from convserve.layers.arguments import standard_data_format
from convserve.layers.layer import Layer
from convserve.layers.plan import channel_axis
from convserve.protocol.results import Result
from convserve.tensors.codec import Array, Shape


@new_command("conv2d", kernels=classic_kernel_list())
@click.argument(
    "input",
    metavar="INPUT",
    help="a .npy file, a .npz file (file.npz:name picks one array), or a picture (PNG, JPEG, WebP, TIFF, BMP, GIF); an "
    "array of one sample may leave out its batch axis",
)
@OPTIONS.option(
    "--layer NAME|DIGEST",
    f"a layer that the server stores (see `convserve layers`): {REFERENCE}. Files of layers are for `batch --layer` or "
    "`layers import`, classic kernels for --kernel",
    dest="reference",
)
@layer_options()
@weight_options
@options_as_one(
    "files",
    SimpleNamespace,
    OUTPUT.option("-o --output FILE.npy", "write the output as an array"),
    OUTPUT.option(
        "--picture FILE.png",
        "draw the output: 1 or 3 channels as a picture, scaled from its least to its greatest value; other numbers "
        f"as a grid of up to {pixels.MAX_MAPS} feature maps beside the input, to its scale (.png or .jpg)",
    ),
    OUTPUT.option(
        "--picture-range LOW,HIGH|shared",
        "draw LOW black and HIGH white, such as 0,255 or -1,1; shared: one scale for all maps (default: the least "
        "and the greatest value, of each map by itself)",
        type=limits_or("shared"),
    ),
    OUTPUT.option(
        "--picture-percentiles LOW,HIGH",
        "draw these percentiles of the values black and white, such as 1,99, so that a few outliers do not decide",
        type=percentiles,
    ),
    OUTPUT.option(
        "--picture-scale N",
        "draw each pixel of a picture as N x N (default: 1; where input and output are small, up to 64 x 64, so many "
        "that they can be seen)",
        type=click.IntRange(1, 256),
    ),
    OUTPUT.option(
        "--picture-channels N[-N],...",
        f"draw these channels, such as 64-127, as a grid (default: the first {pixels.MAX_MAPS})",
        type=channels,
    ),
    OUTPUT.option(
        "--picture-input/--no-picture-input",
        "draw the input beside the output, or not (default: beside a grid)",
        default=None,
    ),
    OUTPUT.option("--sample N", "which sample of the batch to draw and to print (default: 0)", type=int, default=0),
    OUTPUT.option(
        "--output-weights FILE",
        "write the layer's weights, also those that were drawn, and its parameters: .safetensors, or .npz with the "
        "arrays kernel and bias (drawn ones are read from the server, which keeps them without a name)",
    ),
)
@output_dtype_option(OUTPUT)
@OUTPUT.option("--json", "print the summary as JSON", dest="as_json")
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
    if files.picture is None:
        refuse(vars(files), tuple(name for name in vars(files) if name.startswith("picture_")), "without --picture")
    stored = None
    with connection.client() as client:
        if reference is not None:
            options = {**parameters, **weights._asdict()}
            refuse(options, tuple(options), "with --layer: the stored layer has it already")
            stored = find_alone(client, reference)
        data_format = stored.config.data_format if stored else standard_data_format(parameters.get("data_format"))
        x = read_input(input, data_format)
        if files.output is not None:
            check_destination(files.output, (".npy",), "output")
        if files.output_weights is not None:
            check_destination(files.output_weights, LAYER_SUFFIXES, "output_weights")
        if x.shape[0]:  # of an input without samples it is told that it has none
            pixels.check_sample(files.sample, x.shape[0])
        pixels.check_percentiles(files.picture_percentiles, files.picture_range, "picture_percentiles")
        if files.picture is not None:
            check_picture(files.picture)
        layer = stored or layer_for(parameters, weights, x.shape[-1 if data_format == "channels_last" else 1])
        if files.picture_channels is not None:
            made = layer.config.output_shape(x.shape)[channel_axis(layer.config)]
            pixels.chosen(files.picture_channels, made, pixels.MAX_MAPS, "picture_channels")
        start = time.perf_counter()
        result = client.convolve(layer, x, output_dtype=output_dtype)
        total_us = (time.perf_counter() - start) * 1e6
        if files.output_weights is not None:
            save_layer(files.output_weights, _with_weights(client, layer, result, x.shape), "output_weights")
    if files.output is not None:
        save_array(files.output, result.output)
    drawn = None if files.picture is None else _draw(files, Path(input).name, x, result.output, data_format)
    written = [path for path in (files.output, files.output_weights, files.picture) if path is not None]
    shown = pixels.sample_pixels(result.output, files.sample, data_format)
    document = conv2d_summary.document(input, x, result, total_us, written, shown)
    lines = _written(files, result.output, drawn)
    print_result(conv2d_summary.rows(document, layer.config, lines), document, as_json=as_json)


def _with_weights(
    client: convserve.Client, layer: Layer | convserve.StoredLayer, result: Result, shape: Shape
) -> Layer:
    """Returns a layer with its weights: those that the server draws, once more, by the seeds that it used."""
    if isinstance(layer, Layer) and layer.kernel is not None:
        return layer
    config, stored = result.layers[0], layer
    if isinstance(layer, Layer):
        assert config is not None  # noqa: S101 (the server has drawn)
        stored = client.put(config, input_channels=shape[channel_axis(config)])
    return Layer(stored.config, *stored.weights())  # type: ignore[union-attr]


def _draw(files: SimpleNamespace, name: str, x: Array, output: Array, data_format: str) -> Rendered:
    """Draws the output as the options say."""
    title = f"{name}: output {output.shape}"
    title += f", sample {files.sample}" if x.shape[0] > 1 else ""
    with_input = files.picture_input
    if with_input is None:  # a picture alone is one that can be used further
        maps = output.shape[-1 if data_format == "channels_last" else 1]
        with_input = files.picture_channels is not None or not pixels.is_picture(maps)
    sides = slice(1, 3) if data_format == "channels_last" else slice(2, 4)
    return write_picture(
        files.picture,
        output,
        data_format=data_format,
        sample=files.sample,
        channels=files.picture_channels,
        value_range=files.picture_range,
        percentiles=files.picture_percentiles,
        beside=x if with_input else None,
        scale=files.picture_scale or pixels.enlargement(x.shape[sides], output.shape[sides]),
        title=title,
    )


def _written(files: SimpleNamespace, output: Array, drawn: Rendered | None) -> list[str]:
    """Returns a line for each file, with what one should know of it."""
    lines = []
    if files.output is not None:
        cast = " (as float32: the format has no bfloat16)" if output.dtype.name == "bfloat16" else ""
        lines.append(files.output + cast)
    if files.output_weights is not None:
        lines.append(f"{files.output_weights} (the layer's weights)")
    if drawn is not None and drawn.kind == "picture":
        scale = "no finite value" if math.isnan(drawn.low) else f"black is {drawn.low:.6g}, white is {drawn.high:.6g}"
        lines.append(f"{files.picture} ({scale})")
    elif drawn is not None:
        first = "" if files.picture_channels else "the first "
        some = "all" if drawn.maps_shown == drawn.maps else f"{first}{drawn.maps_shown} of"
        signed = pixels.is_signed(drawn.low, drawn.high, files.picture_range)
        scale = f"each scaled by itself{', 0 is white' if signed else ''}"
        if files.picture_range is not None and signed:
            most = max(-drawn.low, drawn.high)
            scale = f"blue is {-most:.6g}, white is 0, red is {most:.6g}"
        elif files.picture_range is not None:
            scale = f"dark is {drawn.low:.6g}, bright is {drawn.high:.6g}"
        lines.append(f"{files.picture} ({some} {drawn.maps} feature maps, {scale})")
    return lines
