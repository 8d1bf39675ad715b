"""`convserve layers`: what a server stores: list it, add to it, look at it, take from it."""

from __future__ import annotations

import click

from convserve.cli.command import JSON, OPTIONS, Group, help_page, new_command
from convserve.cli.commands import layers_import
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import PARAMETERS, Parameters, layer_options
from convserve.cli.options.layer_reference import REFERENCE, find
from convserve.cli.options.weights import Weights, classic_kernel_list, layer_for, weight_options
from convserve.cli.output.layer_table import Row, document, layer_rows, print_table
from convserve.cli.output.report import print_json, print_result
from convserve.files.arrays import check_destination
from convserve.files.layers import LAYER_SUFFIXES, save_layer


@new_command("layers-list")
@OPTIONS.option("--prefix TEXT", "only layers with a name that begins so", default="")
@JSON
@connection_options(timeout=10.0)
def _list(prefix: str, as_json: bool, connection: Connection) -> None:
    with connection.client() as client:
        rows = sorted(map(Row.of_stored, client.layers(prefix)), key=lambda row: (row.name or "", row.digest))
    if as_json:
        print_json({"layers": [document(row) for row in rows]})
    else:
        print_table(rows)


@new_command("layers-get")
@click.argument("reference", metavar="NAME|DIGEST", help=REFERENCE)
@OPTIONS.option(
    "-o --output FILE",
    "write the layer: .safetensors with its configuration, or .npz with arrays named kernel and bias",
)
@JSON
@connection_options(timeout=60.0)
def _get(reference: str, output: str | None, as_json: bool, connection: Connection) -> None:
    from convserve import Layer

    if output is not None:
        check_destination(output, LAYER_SUFFIXES, "output")
    with connection.client() as client:
        layer = find(client, reference)
        if output is not None:
            save_layer(output, Layer(layer.config, *layer.weights()))
    row = Row.of_stored(layer)
    described = document(row) | ({} if output is None else {"file": output})
    print_result([*layer_rows(row), ("written", output or "")], described, as_json=as_json)


@new_command("layers-delete")
@click.argument("reference", metavar="NAME|DIGEST", help=REFERENCE)
@JSON
@connection_options(timeout=10.0)
def _delete(reference: str, as_json: bool, connection: Connection) -> None:
    with connection.client() as client:
        layer = find(client, reference)
        by_name = layer.name == reference
        client.delete(reference if by_name else layer)
    if as_json:
        print_json({"deleted": "name" if by_name else "layer", "name": layer.name, "digest": layer.digest.hex()})
    else:
        what = f"the name {layer.name}, which led to" if by_name else "the layer"
        print(f"deleted {what} {layer.digest.hex()[:12]}")


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
def _put(
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


_COMMANDS = {"list": _list, "put": _put, "get": _get, "delete": _delete, "import": layers_import.command}
command = Group("layers", commands=_COMMANDS, **help_page("layers"))
