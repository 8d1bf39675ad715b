"""What `convserve layers` does with all layers that have a name with a prefix, and with a folder of such layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convserve.cli.output.layer_table import document, print_table, total_text, under_name
from convserve.cli.output.report import print_json, show_progress
from convserve.display.units import counted
from convserve.errors import ConvserveError, short_repr
from convserve.files.layer_folders import layer_files
from convserve.protocol.stored_layers import check_prefix, names_in

if TYPE_CHECKING:
    from convserve import Client, Layer, StoredLayer
    from convserve.importing import Imported


def delete(client: Client, prefix: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Says which names begin so, asks where there is a terminal, and deletes them, with layers that have no other."""
    layers = _with_prefix(client, prefix)
    names = names_in(layers, prefix)
    going = [layer for layer in layers if all(name.startswith(prefix) for name in layer.names)]
    if not as_json:
        for name in names:
            print(name)
        print(f"{counted(len(names), 'name')}, and with their last names {total_text(going)}")
        if names and not dry_run and not yes and sys.stdin.isatty():
            click.confirm("delete them?", abort=True, err=True)
    with progress_shown():
        deleted = [] if dry_run else client._delete_names(names, show)
    if as_json:
        digests = [layer.digest.hex() for layer in going]
        print_json({"prefix": prefix, "dry_run": dry_run, "names": names, "layers": digests, "deleted": deleted})
    else:
        print("deleted nothing: --dry-run" if dry_run else f"deleted {counted(len(deleted), 'name')}")


@contextmanager
def progress_shown() -> Iterator[None]:
    """Ends the line of progress, and says beside an error how far the work came."""
    try:
        yield
    except ConvserveError as error:
        show_progress("")
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        raise
    show_progress("")


def show(name: str, number: int, count: int) -> None:
    """Shows how far the work is."""
    show_progress(f"{number}/{count} {name[:60]}")


def get(client: Client, prefix: str, folder: str, *, as_json: bool) -> None:
    """Writes each layer with a name that begins so into a folder, a file for each such name."""
    layers = _with_prefix(client, prefix)
    written = {name: layer for layer in layers for name in names_in([layer], prefix)}
    with progress_shown():
        files = client._save(layers, prefix, Path(folder), show)
    if as_json:
        listed = [document(written[name]) | {"name": name, "file": str(file)} for name, file in files.items()]
        print_json({"prefix": prefix, "folder": folder, "layers": listed})
    else:
        print_table([under_name(written[name], name) for name in files])
        print(f"wrote {counted(len(files), 'file')} into {folder}")


def _with_prefix(client: Client, prefix: str) -> list[StoredLayer]:
    check_prefix(prefix)
    return client.layers(prefix)


def read_folder(path: str, *, prefix: str | None, **parameters: Any) -> Imported:
    """Returns the layers that `get` wrote into a folder, as `importing.read` does those of a file.

    Raises what that raises, of the first file with something wrong.
    """
    from convserve import importing
    from convserve.files.layers import holds_a_layer

    before = "" if not prefix else prefix.rstrip("/") + "/"
    layers: dict[str, Layer] = {}
    skipped = []
    for name, file in layer_files(Path(path)).items():
        if holds_a_layer(file):
            (layers[before + name],) = importing.read(file, prefix="", **parameters).layers.values()
        else:
            reason = f"weights without a configuration: import {short_repr(str(file))} by itself"
            skipped.append(importing.Skipped(name, "file", reason))
    return importing.Imported(layers, skipped)
