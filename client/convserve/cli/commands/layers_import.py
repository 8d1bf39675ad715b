"""`convserve layers import`: store every Conv2D of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from convserve.cli.options import values
from convserve.cli.options.connection import connect
from convserve.cli.output.layer_table import Row, document, print_table, total_text
from convserve.cli.output.report import print_json, print_rows
from convserve.errors import ConvserveError, FieldViolation, InvalidRequestError, short_repr

if TYPE_CHECKING:
    from convserve import Client, Layer
    from convserve.importing import Imported, Skipped

HELP = "store every Conv2D of a Keras model, a state dictionary or an archive of arrays"

DESCRIPTION = """\
Stores every Conv2D that is in a file, under names such as MODEL/LAYER, and lists
what it skips. Only what the server does not hold is sent. Nothing in the file is
run or unpickled, and neither Keras nor PyTorch is needed. All but .npz and .npy
need the extra: pip install 'convserve[import]'.

  .keras, .h5      a whole Keras model, nested models included
  .safetensors     a state dictionary: each NAME.weight with four dimensions is a
                   PyTorch Conv2d's, each NAME.kernel has Keras' and JAX' order of
                   axes; or a layer that `convserve layers get -o` wrote
  .npz, .npy       arrays with such names, or a single one"""

EPILOG = """\
A state dictionary and an archive of arrays don't say a layer's strides, padding,
dilation and groups. They come from the options, for all layers, or from --config, a
JSON file with parameters by layer, in Keras' or PyTorch's words; patterns are
allowed, a later one wins, and null leaves a layer out:
    {"conv1": {"stride": 2, "padding": 3}, "layer*.conv2": {"padding": 1}, "up": null}

examples:
  convserve layers import resnet50.keras
  convserve layers import resnet50.keras --prefix vision/v2 --dry-run
  convserve layers import resnet18.safetensors --config geometry.json
  convserve layers import filters.npz --padding same --activation relu"""

_MAX_LINES = 20
_PARAMETERS = ("strides", "padding", "dilation_rate", "groups", "activation", "data_format", "dtype")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the action's options."""
    parser.usage = "%(prog)s FILE [OPTIONS]"
    parser.add_argument("path", metavar="FILE", help="the file; the end of its name says what it is")
    parser.add_argument(
        "--prefix", metavar="TEXT", help="what stands before every name (default: the model's name, or the file's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be imported, without asking a server")
    group = parser.add_argument_group("layers of a file that has no configurations")
    group.add_argument("--config", metavar="FILE.json", help="parameters by layer, as below")
    group.add_argument("--strides", type=values.pair, metavar="N|H,W", help="steps of the window (default: 1)")
    group.add_argument(
        "--padding",
        type=_padding,
        metavar="PADDING",
        help="valid, same, PyTorch's amount N or H,W, or rows and columns of zeros as top,bottom,left,right "
        "(default: valid)",
    )
    group.add_argument("--dilation-rate", type=values.pair, metavar="N|H,W", help="steps between taps (default: 1)")
    group.add_argument("--groups", type=int, metavar="N", help="number of groups of channels (default: 1)")
    group.add_argument("--activation", type=values.named_object, metavar="NAME|JSON", help="function applied last")
    group.add_argument(
        "--data-format", choices=("channels_last", "channels_first"), help="where the channels of inputs are"
    )
    group.add_argument("--dtype", metavar="POLICY", help="float32, mixed_float16, ... (default: float32)")


def run(arguments: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    from convserve import importing

    given = {name: getattr(arguments, name) for name in _PARAMETERS}
    parameters = {name: value for name, value in given.items() if value is not None}
    config = None if arguments.config is None else _read_config(arguments.config)
    imported = importing.read(arguments.path, prefix=arguments.prefix, config=config, **parameters)
    missing: list[Layer] = []
    if imported.layers and not arguments.dry_run:
        with connect(arguments) as client:
            missing = client.missing(list(imported.layers.values()))
            _put(client, imported.layers)
    sent = {layer.digest for layer in missing}
    if arguments.json:
        print_json(_document(arguments, imported, sent))
    else:
        _print(arguments, imported, sent)
    if not imported.layers:
        text = f"Expected a file with a Conv2D. Received {short_repr(arguments.path)}, which has none."
        raise InvalidRequestError(FieldViolation("file", text))
    return 0


def _put(client: Client, layers: dict[str, Layer]) -> None:
    """Stores the layers under their names; a layer that is held already is only named."""
    shows = sys.stderr.isatty()
    for number, (name, layer) in enumerate(layers.items()):
        if shows:
            print(f"\r\033[K{number + 1}/{len(layers)} {name[:60]}", end="", file=sys.stderr, flush=True)
        try:
            client.put(layer, name=name)
        except ConvserveError:
            end = "\r\033[K" if shows else ""
            print(f"{end}stored {number} of {len(layers)} layers; a new attempt sends only the others", file=sys.stderr)
            raise
    if shows:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print(arguments: argparse.Namespace, imported: Imported, sent: set[bytes]) -> None:
    rows = [Row.of_layer(name, layer) for name, layer in imported.layers.items()]
    if rows:
        print_table(rows)
    new = [row for row in rows if bytes.fromhex(row.digest) in sent]
    held = "; the server held the others" if len(new) < len(rows) else ""
    done = f"{total_text(new)}{held}" if new else "nothing: the server held them all"
    done = "nothing: --dry-run" if arguments.dry_run else done
    plain = Counter(each.kind for each in imported.skipped if _is_plain(each))
    others = [each for each in imported.skipped if not _is_plain(each)]
    lines = [", ".join(f"{count} {kind}" for kind, count in plain.most_common())] if plain else []
    lines += [f"{each.name} ({each.kind}): {each.reason}" for each in others[:_MAX_LINES]]
    lines += [f"and {len(others) - _MAX_LINES} more; --json lists all"] if len(others) > _MAX_LINES else []
    print_rows([("sent", done if rows else ""), ("skipped", "\n".join(lines))])


def _is_plain(skipped: Skipped) -> bool:
    """Whether something is skipped for what it is, so that a number says enough."""
    return skipped.reason.startswith("not ")


def _document(arguments: argparse.Namespace, imported: Imported, sent: set[bytes]) -> dict[str, Any]:
    return {
        "file": arguments.path,
        "dry_run": arguments.dry_run,
        "imported": [
            document(Row.of_layer(name, layer)) | {"sent": layer.digest in sent}
            for name, layer in imported.layers.items()
        ],
        "skipped": [each._asdict() for each in imported.skipped],
    }


def _padding(text: str) -> Any:
    """Returns what Conv2D or torch.nn.Conv2d takes as padding."""
    if text.replace("x", ",").count(",") <= 1 and text.lower() not in ("valid", "same"):
        return values.pair(text)
    return values.padding(text)


def _read_config(path: str) -> dict[str, Any]:
    expected = "a JSON file with an object of parameters by layer"
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        text = f"Expected a file that can be read. Received {short_repr(path)}: {error.strerror or error}."
        raise InvalidRequestError(FieldViolation("config", text)) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            FieldViolation("config", f"Expected {expected}. Received {short_repr(path)}: {error}.")
        ) from error
    if not isinstance(found, dict):
        raise InvalidRequestError(FieldViolation("config", f"Expected {expected}. Received {short_repr(found)}."))
    return found
