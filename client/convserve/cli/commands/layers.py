"""`convserve layers`: what a server stores: list it, add to it, look at it, take from it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import convserve
from convserve.cli.command import JSON, OPTIONS, Group, help_page, new_command
from convserve.cli.commands import layers_import
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import PARAMETERS, Parameters, layer_options
from convserve.cli.options.layer_reference import EXPECT, REFERENCE, expected, find
from convserve.cli.options.weights import Weights, classic_kernel_list, layer_for, weight_options
from convserve.cli.output import layer_table
from convserve.cli.output.report import print_json, print_result, show_count, show_progress
from convserve.display.units import counted
from convserve.errors import LayerNotFoundError, short_repr
from convserve.files.layers import LAYER_SUFFIXES, save_layer
from convserve.files.writing import check_destination
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import check_prefix, names_in


@new_command("layers-list")
@OPTIONS.option("--prefix TEXT", "only layers with a name that begins so", default="")
@JSON
@connection_options(timeout=10.0)
def _list(prefix: str, as_json: bool, connection: Connection) -> None:
    with connection.client() as client:
        layers = sorted(client.layers(prefix), key=lambda layer: (layer.name or "", layer.digest))
    if as_json:
        print_json({"layers": list(map(layer_table.document, layers))})
    else:
        layer_table.print_table(layers)


def _is_prefix(prefix: str | None, reference: str | None) -> bool:
    """Returns whether layers are given by a prefix, and not one by a reference; raises click.UsageError if by both."""
    if prefix is not None and reference is not None:
        raise click.UsageError("NAME|DIGEST with --prefix is one too many")
    if prefix is None and reference is None:
        raise click.UsageError("NAME|DIGEST or --prefix is needed")
    return prefix is not None


@new_command("layers-get")
@click.argument("reference", metavar="NAME|DIGEST", help=REFERENCE, required=False)
@OPTIONS.option("--prefix TEXT", "get all layers with a name that begins so, instead of one: into the folder --output")
@OPTIONS.option(
    "-o --output FILE",
    "write the layer with its configuration: .safetensors, or .npz with arrays named kernel and bias",
)
@JSON
@connection_options(timeout=60.0)
def _get(reference: str | None, prefix: str | None, output: str | None, as_json: bool, connection: Connection) -> None:
    if _is_prefix(prefix, reference):
        if output is None:
            raise click.UsageError("--prefix needs --output, the folder to write into")
        with connection.client() as client:
            _get_all(client, str(prefix), output, as_json)
        return
    if output is not None:
        check_destination(output, LAYER_SUFFIXES, "output")
    with connection.client() as client:
        layer = find(client, str(reference))
        if output is not None:
            save_layer(output, Layer(layer.config, *layer.weights()))
    described = layer_table.document(layer) | ({} if output is None else {"file": output})
    print_result([*layer_table.rows(layer), ("written", output or "")], described, as_json=as_json)


def _with_prefix(client: convserve.Client, prefix: str) -> list[convserve.StoredLayer]:
    """Returns the layers with a name that begins so; raises LayerNotFoundError if there are none."""
    check_prefix(prefix)
    layers = client.layers(prefix)
    if not layers:
        text = f"Expected what the name of a stored layer begins with. Received {short_repr(prefix)}, as none does."
        raise LayerNotFoundError(text, layer=prefix)
    return layers


def _get_all(client: convserve.Client, prefix: str, folder: str, as_json: bool) -> None:
    """Writes each layer with a name that begins so into a folder, a file for each such name."""
    layers = _with_prefix(client, prefix)
    written = {name: layer for layer in layers for name in names_in([layer], prefix)}
    files = client._save(layers, prefix, Path(folder), show_count)
    show_progress("")
    if as_json:
        listed = [
            layer_table.document(written[name]) | {"name": name, "file": str(file)} for name, file in files.items()
        ]
        print_json({"prefix": prefix, "folder": folder, "layers": listed})
    else:
        layer_table.print_table([layer_table.under_name(written[name], name) for name in files])
        print(f"wrote {counted(len(files), 'file')} into {folder}")


@new_command("layers-delete")
@click.argument("reference", metavar="NAME|DIGEST", help=REFERENCE, required=False)
@OPTIONS.option("--prefix TEXT", "delete all names that begin so, instead of one name or layer")
@OPTIONS.option("--dry-run", "with --prefix: say what would be deleted, and delete nothing")
@OPTIONS.option("--yes", "with --prefix: don't ask, as without a terminal")
@JSON
@connection_options(timeout=10.0)
def _delete(
    reference: str | None, prefix: str | None, dry_run: bool, yes: bool, as_json: bool, connection: Connection
) -> None:
    if _is_prefix(prefix, reference):
        with connection.client() as client:
            _delete_all(client, str(prefix), dry_run, yes, as_json)
        return
    if dry_run or yes:
        raise click.UsageError("--dry-run and --yes are for --prefix")
    with connection.client() as client:
        layer = find(client, str(reference))
        by_name = layer.name == reference
        client.delete(str(reference) if by_name else layer)
    digest, what = layer.digest.hex(), f"the name {layer.name}, which led to" if by_name else "the layer"
    found = {"deleted": "name" if by_name else "layer", "name": layer.name, "digest": digest}
    print_result(f"deleted {what} {digest[:12]}", found, as_json=as_json)


def _delete_all(client: convserve.Client, prefix: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Says which names begin so, asks where there is a terminal, and deletes them, with layers that have no other."""
    layers = _with_prefix(client, prefix)
    names = names_in(layers, prefix)
    going = [layer for layer in layers if all(name.startswith(prefix) for name in layer.names)]
    if not as_json:
        for name in names:
            print(name)
        print(f"{counted(len(names), 'name')}, and with their last names {layer_table.total_text(going)}")
        if names and not dry_run and not yes and sys.stdin.isatty():
            click.confirm("delete them?", abort=True, err=True)
    deleted = [] if dry_run else client._delete_names(names, show_count)
    show_progress("")
    digests = [layer.digest.hex() for layer in going]
    found = {"prefix": prefix, "dry_run": dry_run, "names": names, "layers": digests, "deleted": deleted}
    text = "deleted nothing: --dry-run" if dry_run else f"deleted {counted(len(deleted), 'name')}"
    print_result(text, found, as_json=as_json)


@new_command("layers-versions")
@click.argument("name", metavar="NAME", help="the name")
@JSON
@connection_options(timeout=10.0)
def _versions(name: str, as_json: bool, connection: Connection) -> None:
    with connection.client() as client:
        versions = client.versions(name)
    if as_json:
        print_json({"name": name, "versions": [layer_table.version_document(version) for version in versions]})
    else:
        layer_table.print_versions(versions)


@new_command("layers-move")
@click.argument("name", metavar="NAME", help="the name to move, which may be a new one")
@click.argument("reference", metavar="NAME|DIGEST", help=f"where it is to lead: {REFERENCE}", required=False)
@OPTIONS.option("--version N", "back to the layer of this version of the name", type=int)
@OPTIONS.option("--away", "remove the name, and leave its layer")
@OPTIONS.option("--expect NAME|DIGEST|absent", EXPECT)
@JSON
@connection_options(timeout=10.0)
def _move(
    name: str,
    reference: str | None,
    version: int | None,
    away: bool,
    expect: str | None,
    as_json: bool,
    connection: Connection,
) -> None:
    if (reference is not None) + (version is not None) + away != 1:
        raise click.UsageError("one of NAME|DIGEST, --version and --away is needed")
    with connection.client() as client:
        there = expected(client, expect)
        moved = None
        if away:
            client.move_away(name, expect=there)
        elif version is not None:
            moved = client.move(name, version=version, expect=there)
        else:
            moved = client.move(name, find(client, str(reference)), expect=there)
    digest = None if moved is None else moved.digest.hex()
    text = f"{name} leads {'nowhere' if digest is None else f'to {digest[:12]}'}"
    print_result(text, {"name": name, "digest": digest}, as_json=as_json)


@new_command("layers-put", kernels=classic_kernel_list())
@OPTIONS.option(
    "--name NAME", "the name to store it under: up to 200 letters, digits, '-', '_', '.' and '/' (default: none)"
)
@OPTIONS.option("--expect NAME|DIGEST|absent", f"with --name: {EXPECT}")
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
    expect: str | None,
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
        there = expected(client, expect)
        stored = client.put(what, name=name, expect=there, input_channels=input_channels)
    print_result(layer_table.rows(stored), layer_table.document(stored), as_json=as_json)


_NAMED = {"list": _list, "put": _put, "get": _get, "versions": _versions, "move": _move, "delete": _delete}
command = Group("layers", commands={**_NAMED, "import": layers_import.command}, **help_page("layers"))
