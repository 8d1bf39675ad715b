"""`convserve layers put`: store one layer."""

from __future__ import annotations

import click

from convserve.cli.command import JSON, OPTIONS, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import PARAMETERS, Parameters, layer_options
from convserve.cli.options.weights import Weights, classic_kernel_list, layer_for, weight_options
from convserve.cli.output.layer_table import Row, document, layer_rows
from convserve.cli.output.report import print_result


@new_command("layers-put", kernels=classic_kernel_list())
@OPTIONS.option(
    "--name NAME", "the name to store it under: up to 200 letters, digits, '-', '_', '.' and '/' (default: none)"
)
@OPTIONS.option(
    "--input-channels N",
    "the input's channels: needed where the server draws the weights; a classic kernel is repeated for them "
    "(default: 1)",
    type=click.IntRange(min=1),
)
@JSON
# Without the label, which is no part of what is stored under a name.
@layer_options([parameter for parameter in PARAMETERS if parameter != "name"])
@weight_options
@connection_options(timeout=60.0)
def command(
    name: str | None,
    input_channels: int | None,
    as_json: bool,
    parameters: Parameters,
    weights: Weights,
    connection: Connection,
) -> None:
    if weights.kernel is None and input_channels is None:
        raise click.UsageError("--input-channels is needed where the server draws the weights")
    layer = layer_for(parameters, weights, input_channels or 1)
    if input_channels is not None:
        layer.check_input_channels(input_channels)
    with connection.client() as client:
        what = layer.config if layer.kernel is None else layer
        row = Row.of_stored(client.put(what, name=name, input_channels=input_channels))
    print_result(layer_rows(row), document(row), as_json=as_json)
