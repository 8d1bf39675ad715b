"""`convserve layers import`: store every convolution of a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import convserve
from convserve.cli.command import JSON, OPTIONS, Section, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import Parameters, layer_options
from convserve.cli.options.values import padding as padding_of
from convserve.cli.output.layer_table import document, print_table, total_text, under_name
from convserve.cli.output.report import first_lines, print_json, print_rows, show_count, show_progress
from convserve.errors import ConvserveError, InvalidRequestError, short_repr
from convserve.files.layers import holds_a_layer, layer_files
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import StoredLayerBase

if TYPE_CHECKING:
    from convserve.importing import Imported


_FURTHER = "more; --json lists all"
_GEOMETRY = Section("layers of a file that has no configurations")
_SHARED_PARAMETERS = ("strides", "dilation_rate", "groups", "activation", "data_format", "dtype")


@new_command("layers-import")
@click.argument("path", metavar="FILE", help="the file; the end of its name says what it is; or a folder")
@OPTIONS.option("--prefix TEXT", "what stands before every name (default: the model's name, or the file's)")
@OPTIONS.option("--dry-run", "say what would be imported, without asking a server")
@OPTIONS.option(
    "--fold-batch-norm", "of a model: a convolution takes over the BatchNormalization, activation and padding around it"
)
@JSON
@_GEOMETRY.option("--config FILE.json", "parameters by layer, as below", dest="config_path")
@_GEOMETRY.option(
    "--padding PADDING",
    "valid, same, PyTorch's amount N or H,W, or rows and columns of zeros as top,bottom,left,right",
    type=padding_of,
)
@_GEOMETRY.option(
    "--assume-defaults", "take strides 1 and no padding where nothing says them, and list what was assumed"
)
@layer_options(_SHARED_PARAMETERS, _GEOMETRY)
@connection_options(timeout=60.0)
def command(
    path: str,
    prefix: str | None,
    dry_run: bool,
    fold_batch_norm: bool,
    as_json: bool,
    config_path: str | None,
    padding: Any,
    assume_defaults: bool,
    parameters: Parameters,
    connection: Connection,
) -> None:
    from convserve import importing

    geometry = parameters if padding is None else {**parameters, "padding": padding}
    config = None if config_path is None else _read_config(config_path)
    reading: dict[str, Any] = {"config": config, "assume_defaults": assume_defaults, "fold_batch_norm": fold_batch_norm}
    read: Callable[..., Imported] = _read_folder if Path(path).is_dir() else importing.read
    imported = read(path, prefix=prefix, **reading, **geometry)
    sent: set[bytes] = set()
    if imported.layers and not dry_run:
        with connection.client() as client:
            sent = {layer.digest for layer in client.missing(list(imported.layers.values()))}
            _put(client, imported.layers)
    named = [under_name(layer, name) for name, layer in imported.layers.items()]
    if as_json:
        listed = [document(layer) | {"sent": layer.digest in sent} for layer in named]
        skipped = [skipped._asdict() for skipped in imported.skipped]
        found = {"layers": listed, "imported": listed, "assumed": imported.assumed, "skipped": skipped}
        # "layers" is what `layers list --json` calls them.
        print_json({"file": path, "dry_run": dry_run, "note": imported.note, **found})
    else:
        _print(named, imported, sent, dry_run=dry_run)
    if not imported.layers:
        raise InvalidRequestError.for_field("file", "a file with a Conv2D", f"{short_repr(path)}, which has none")


def _put(client: convserve.Client, layers: dict[str, Layer]) -> None:
    """Stores the layers under their names; a layer that is held already is only named."""
    for number, (name, layer) in enumerate(layers.items()):
        show_count(name, number + 1, len(layers))
        try:
            client.put(layer, name=name)
        except ConvserveError as error:
            error.add_note(f"stored {number} of {len(layers)} layers; a new attempt sends only the others")
            raise
    show_progress("")


def _print(named: list[StoredLayerBase], imported: Imported, sent: set[bytes], *, dry_run: bool) -> None:
    if named:
        print_table(named)
    new = [layer for layer in named if layer.digest in sent]
    held = "; the server held the others" if len(new) < len(named) else ""
    done = f"{total_text(new)}{held}" if new else "nothing: the server held them all"
    done = "nothing: --dry-run" if dry_run else done
    # What is skipped for what it is ("not a Conv2D") is only counted by kind.
    plain = Counter(layer.kind for layer in imported.skipped if layer.reason.startswith("not "))
    lines = [", ".join(f"{count} {kind}" for kind, count in plain.most_common())] if plain else []
    others = [layer for layer in imported.skipped if not layer.reason.startswith("not ")]
    lines += [first_lines([f"{other.name} ({other.kind}): {other.reason}" for other in others], _FURTHER)]
    assumed = first_lines([f"{name}: {what}" for name, what in imported.assumed.items()], _FURTHER)
    skipped = "\n".join(filter(None, lines))
    print_rows([("sent", done if named else ""), ("assumed", assumed), ("skipped", skipped), ("note", imported.note)])


def _read_folder(path: str, *, prefix: str | None, **parameters: Any) -> Imported:
    """Returns the layers that `convserve layers get` wrote into a folder, as `importing.read` does those of a file.

    Raises what that raises, of the first file with something wrong.
    """
    from convserve import importing
    from convserve.importing.imported import Contents

    contents = Contents("")
    for name, file in layer_files(Path(path)).items():
        if holds_a_layer(file):
            (layer,) = importing.read(file, prefix="", **parameters).layers.values()
            contents.layers.append((name, layer))
        else:
            contents.skip(name, "file", f"weights without a configuration: import {short_repr(str(file))} by itself")
    return contents.named(prefix or "")


def _read_config(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict):
            raise ValueError(short_repr(config))
    except OSError as error:
        received = f"{short_repr(path)}: {error.strerror or error}"
        raise InvalidRequestError.for_field("config", "a file that can be read", received) from error
    except (ValueError, RecursionError) as error:
        expected = "a JSON file with an object of parameters by layer"
        raise InvalidRequestError.for_field("config", expected, f"{short_repr(path)}: {error}") from error
    return config
