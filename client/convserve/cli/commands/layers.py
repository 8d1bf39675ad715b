"""`convserve layers`: what a server stores: list it, add to it, look at it, take from it."""

from __future__ import annotations

import click

from convserve.cli.command import JSON, OPTIONS, Group, new_command
from convserve.cli.commands import layers_import, layers_put
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer_reference import REFERENCE, find
from convserve.cli.output.layer_table import Row, document, layer_rows, print_table
from convserve.cli.output.report import print_json, print_result
from convserve.files.arrays import check_destination
from convserve.files.layers import LAYER_SUFFIXES, save_layer

_HELP = """\
A server keeps layers: a layer's weights are sent once, and calls name it. A layer
goes by its digest, which follows from its configuration and weights and never
changes, and by names, which lead to one layer each and can be moved."""

_EPILOG = """\
examples:
  every Conv2D of a model, under names such as resnet50/conv1_conv:
    convserve layers import resnet50.keras
    convserve layers list --prefix resnet50/

  one layer; the next call with another kernel moves the name:
    convserve layers put --name edges --kernel sobel-x --input-channels 3
    convserve layers get edges -o edges.safetensors
    convserve layers delete edges

'convserve layers COMMAND --help' explains a command, with examples."""

_LIST_EPILOG = """\
examples:
  convserve layers list
  convserve layers list --prefix resnet50/ --json"""

_GET_EPILOG = """\
examples:
  convserve layers get resnet50/conv1_conv
  convserve layers get 3f1b2c4d -o weights.npz
  convserve layers get edges -o edges.safetensors     # configuration too

`convserve layers import` and numpy.load read what this writes."""

_DELETE_HELP = """\
Deletes a name or a stored layer. Given a name, deletes the name, and the layer with
the last of its names. Given a digest, or enough of its beginning, deletes the layer
and all its names."""

_DELETE_EPILOG = """\
examples:
  convserve layers delete edges
  convserve layers delete 3f1b2c4d"""


@new_command("Lists stored layers.", _LIST_EPILOG)
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


@new_command("Shows a stored layer, or writes it to a file.", _GET_EPILOG)
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


@new_command(_DELETE_HELP, _DELETE_EPILOG)
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


_COMMANDS = {
    "list": _list,
    "put": layers_put.command,
    "get": _get,
    "delete": _delete,
    "import": layers_import.command,
}
command = Group("layers", help=_HELP, epilog=_EPILOG, commands=_COMMANDS)
