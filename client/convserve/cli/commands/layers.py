"""`convserve layers`: what a server stores: list it, add to it, look at it, take from it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from convserve.cli.commands import layers_import, layers_put
from convserve.cli.options.connection import add_connection_options, connect
from convserve.cli.options.layer_reference import REFERENCE, find
from convserve.cli.output.layer_table import Row, document, layer_rows, print_table
from convserve.cli.output.report import print_json, print_rows
from convserve.files.arrays import check_destination
from convserve.files.layers import LAYER_SUFFIXES, save_layer

HELP = "list, put, get, delete and import stored layers"

_DESCRIPTION = """\
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

'convserve layers ACTION --help' explains an action, with examples."""

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

_DELETE_DESCRIPTION = """\
Given a name, deletes the name, and the layer with the last of its names. Given a
digest, or enough of its beginning, deletes the layer and all its names."""

_DELETE_EPILOG = """\
examples:
  convserve layers delete edges
  convserve layers delete 3f1b2c4d"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions, each with its options."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = add_action(actions, "list", "list stored layers", _LIST_EPILOG, _list)
    listing.add_argument("--prefix", metavar="TEXT", default="", help="only layers with a name that begins so")
    add_common_options(listing, timeout=10.0)

    put = add_action(actions, "put", layers_put.HELP, layers_put.EPILOG, layers_put.run, layers_put.DESCRIPTION)
    layers_put.add_arguments(put)
    add_common_options(put, timeout=60.0)

    get = add_action(actions, "get", "show a stored layer, or write it to a file", _GET_EPILOG, _get)
    get.add_argument("reference", metavar="NAME|DIGEST", help=REFERENCE)
    get.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write the layer: .safetensors with its configuration, or .npz with arrays named kernel and bias",
    )
    add_common_options(get, timeout=60.0)

    delete = add_action(
        actions, "delete", "delete a name or a stored layer", _DELETE_EPILOG, _delete, _DELETE_DESCRIPTION
    )
    delete.add_argument("reference", metavar="NAME|DIGEST", help=REFERENCE)
    add_common_options(delete, timeout=10.0)

    importing = add_action(
        actions, "import", layers_import.HELP, layers_import.EPILOG, layers_import.run, layers_import.DESCRIPTION
    )
    layers_import.add_arguments(importing)
    add_common_options(importing, timeout=60.0)


def run(arguments: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    return int(arguments.act(arguments))


def add_action(
    actions: Any,
    name: str,
    text: str,
    epilog: str,
    act: Callable[[argparse.Namespace], int],
    description: str | None = None,
) -> argparse.ArgumentParser:
    """Adds an action's parser, without options."""
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=text,
        description=description or f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    parser.set_defaults(refuse=parser.error, act=act)
    return parser


def add_common_options(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Adds `--json` and the options that name a server."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_connection_options(parser, timeout=timeout)


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        rows = sorted(map(Row.of_stored, client.layers(arguments.prefix)), key=lambda row: (row.name or "", row.digest))
    if arguments.json:
        print_json({"layers": [document(row) for row in rows]})
    else:
        print_table(rows)
    return 0


def _get(arguments: argparse.Namespace) -> int:
    from convserve import Layer

    if arguments.output is not None:
        check_destination(arguments.output, LAYER_SUFFIXES, "output")
    with connect(arguments) as client:
        found = find(client, arguments.reference)
        if arguments.output is not None:
            save_layer(arguments.output, Layer(found.config, *found.weights()))
    row = Row.of_stored(found)
    if arguments.json:
        print_json(document(row) | ({} if arguments.output is None else {"file": arguments.output}))
    else:
        print_rows([*layer_rows(row), ("written", arguments.output or "")])
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        found = find(client, arguments.reference)
        by_name = found.name == arguments.reference
        client.delete(arguments.reference if by_name else found)
    if arguments.json:
        print_json({"deleted": "name" if by_name else "layer", "name": found.name, "digest": found.digest.hex()})
    else:
        what = f"the name {found.name}, which led to" if by_name else "the layer"
        print(f"deleted {what} {found.digest.hex()[:12]}")
    return 0
