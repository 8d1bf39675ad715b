"""`convserve layers put`: store one layer."""

from __future__ import annotations

import argparse

from convserve.cli.options.connection import connect
from convserve.cli.options.layer import add_layer_options
from convserve.cli.options.weights import add_weight_options, classic_kernel_list, layer_for
from convserve.cli.output.layer_table import Row, document, layer_rows
from convserve.cli.output.report import print_json, print_rows

HELP = "store a layer"

DESCRIPTION = """\
Stores a layer, described as for `convserve conv2d`: with the parameters of
keras.layers.Conv2D, and weights that are given with --kernel or drawn by the
server. Storing the same layer again changes nothing but its name."""

EPILOG = f"""\
classic kernels, for --kernel:
{classic_kernel_list()}

examples:
  a classic kernel for RGB pictures:
    convserve layers put --name edges --kernel sobel-x --input-channels 3

  weights of your own, saved with numpy.save:
    convserve layers put --name mine --kernel kernel.npy --bias bias.npy \\
      --strides 2 --padding 1,1,1,1 --activation relu

  weights that the server draws, the same each time:
    convserve layers put --name random --filters 64 --kernel-size 3 \\
      --input-channels 3 --seed 0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the action's options. The parser's conflict handler is "resolve"."""
    parser.usage = (
        "%(prog)s [--name NAME] --kernel NAME|FILE [OPTIONS]\n"
        "       %(prog)s [--name NAME] --filters N --kernel-size N --input-channels N [OPTIONS]"
    )
    add_layer_options(parser)
    add_weight_options(parser)
    parser.add_argument(
        "--input-channels",
        type=int,
        metavar="N",
        help="the input's channels: needed where the server draws the weights; a classic kernel is repeated for them "
        "(default: 1)",
    )
    # In the place of the label of that name, which is no part of what is stored under a name.
    parser.add_argument(
        "--name",
        dest="stored_name",
        metavar="NAME",
        help="the name to store it under: up to 200 letters, digits, '-', '_', '.' and '/' (default: none)",
    )
    parser.set_defaults(name=None)


def run(arguments: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    if arguments.kernel is None and arguments.input_channels is None:
        arguments.refuse("--input-channels is needed where the server draws the weights")
    if arguments.input_channels is not None and arguments.input_channels < 1:
        arguments.refuse("argument --input-channels: expected a number of at least 1")
    layer = layer_for(arguments, arguments.input_channels or 1)
    if arguments.input_channels is not None:
        layer.check_input_channels(arguments.input_channels)
    given = layer.config if layer.kernel is None else layer
    with connect(arguments) as client:
        stored = client.put(given, name=arguments.stored_name, input_channels=arguments.input_channels)
    row = Row.of_stored(stored)
    if arguments.json:
        print_json(document(row))
    else:
        print_rows(layer_rows(row))
    return 0
