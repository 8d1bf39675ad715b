"""`convserve bench`: is it fast here?"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.options.connection import add_connection_options, connect
from convserve.cli.options.layer import add_layer_options, given_parameters
from convserve.cli.options.layer_reference import REFERENCE, find
from convserve.cli.options.values import seconds, shape
from convserve.cli.options.weights import add_weight_options, layer_for
from convserve.files.arrays import check_destination
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES

if TYPE_CHECKING:
    from convserve import Client
    from convserve.bench.measurement import Load
    from convserve.bench.workloads import Workload

HELP = "measure a server: latency, throughput, and where the time goes"

_DESCRIPTION = """\
Measures how fast a server is from here: latency percentiles, calls and bytes per
second, and what share of the time the server waits and computes. Beside it, in
turns of a second or so, the same layer is measured in this process (where
TensorFlow is installed) and a raw echo of as many bytes over the same connection,
which is the most that the connection can do. All answers are checked: a fast
wrong one ends with exit status 1.

Without --input-shape four layers are measured, from a small image to a batch."""

_EPILOG = """\
examples:
  is it fast here?
    convserve bench

  one layer and one shape, by one, 8 and 32 threads, for a minute:
    convserve bench --filters 64 --kernel-size 3 --input-shape 8,224,224,3 \\
      --concurrency 1,8,32 --seconds 60

  what users see who arrive at 200 calls a second, answered or not:
    convserve bench --filters 16 --kernel-size 3 --input-shape 1,32,32,3 \\
      --rate 200

  a stored layer, on another machine, with a picture and a file for a program:
    convserve bench --layer resnet50/conv1_conv --input-shape 1,224,224,3 \\
      --target gpu-host:50051 --plot bench.png --json bench.json

Weights that are not given are random, whatever the initializers: speed does not
depend on them. MB are 1,000,000 bytes of tensors. Ctrl-C prints what there is."""

_PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = (
        "%(prog)s [OPTIONS]\n       %(prog)s --input-shape N,H,W,C --filters N --kernel-size N [OPTIONS]\n"
        "       %(prog)s --input-shape N,H,W,C --layer NAME|DIGEST [OPTIONS]"
    )
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    load = parser.add_argument_group("load")
    load.add_argument(
        "--concurrency",
        type=_counts,
        metavar="N[,N...]",
        help="callers that call again as soon as they are answered, as threads that share a client "
        "(default: 1,8; none with --rate)",
    )
    load.add_argument(
        "--rate",
        type=_rates,
        default=[],
        metavar="N[,N...]",
        help="calls per second that wait for no answer; latencies then count from when a call was due",
    )
    load.add_argument(
        "--seconds", type=seconds, default=20.0, metavar="N", help="how long to measure in all (default: %(default)g)"
    )
    load.add_argument(
        "--no-shared-memory", action="store_true", help="send tensors over the connection, also to a server here"
    )
    load.add_argument("--no-in-process", action="store_true", help="leave out the layer in this process")
    call = parser.add_argument_group("call")
    call.add_argument("--input-shape", type=shape, metavar="N,H,W,C", help="the input's shape with its batch axis")
    call.add_argument(
        "--input-dtype", choices=INPUT_DTYPES, default="float32", help="the input's type (default: %(default)s)"
    )
    call.add_argument(
        "--output-dtype", choices=FLOAT_DTYPES, help="the output's type (default: that of the computation)"
    )
    call.add_argument("--layer", metavar="NAME|DIGEST", help=f"a layer that the server stores: {REFERENCE}")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write everything that was found; - for stdout, and no table")
    output.add_argument("--plot", metavar="FILE.png", help="draw it (.png, .svg or .pdf); needs convserve[plot]")
    add_layer_options(parser)
    add_weight_options(parser)
    add_connection_options(parser, timeout=60.0)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from convserve.bench.measurement import Measurement, is_right
    from convserve.cli.output.bench_table import print_document

    _refuse_contradictions(arguments)
    if arguments.json not in (None, "-"):
        check_destination(arguments.json, (".json",), "json")
    if arguments.plot is not None:
        check_destination(arguments.plot, _PICTURES, "plot")
        from convserve.bench import chart

        chart.check()
    interrupted = False
    with (
        connect(arguments, shared_memory=not arguments.no_shared_memory) as client,
        Measurement(client, arguments.target, _loads(arguments), timeout=arguments.timeout) as measurement,
    ):
        try:
            for workload in _workloads(arguments, client):
                _progress(f"preparing {workload.name}")
                measurement.add(workload, with_layer_in_process=not arguments.no_in_process)
            measurement.run(arguments.seconds, _progress)
        except KeyboardInterrupt:
            interrupted = True
        document = measurement.document()
        document |= {"command": shlex.join(["convserve", *sys.argv[1:]]), "interrupted": interrupted}
    _progress("")
    if arguments.json is not None:
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        if arguments.json == "-":
            print(text, end="")
        else:
            Path(arguments.json).write_text(text, encoding="utf-8")
    if arguments.json != "-":
        print_document(document)
    if arguments.plot is not None and document["workloads"]:  # none if it was interrupted before the first was ready
        chart.write(document, arguments.plot)
        print(f"drawn in {arguments.plot}", file=sys.stderr)
    if interrupted:
        return 130
    return 0 if is_right(document) else 1


def _loads(arguments: argparse.Namespace) -> list[Load]:
    from convserve.bench.measurement import Load

    callers = arguments.concurrency or ([] if arguments.rate else [1, 8])
    return [*(Load(callers=each) for each in callers), *(Load(rate=each) for each in arguments.rate)]


def _workloads(arguments: argparse.Namespace, client: Client) -> list[Workload]:
    """Returns what the options describe, or the standard workloads where they describe nothing."""
    from convserve import Layer
    from convserve.bench.workloads import Workload, standard, with_weights

    if arguments.input_shape is None:
        return standard()
    dtypes = {"input_dtype": arguments.input_dtype, "output_dtype": arguments.output_dtype}
    if arguments.layer is not None:
        stored = find(client, arguments.layer)
        layer = Layer(stored.config, *stored.weights())
        return [Workload(stored.name or arguments.layer[:12], layer, arguments.input_shape, **dtypes)]
    first = arguments.data_format == "channels_first"
    layer = layer_for(arguments, arguments.input_shape[1 if first else -1])
    if layer.kernel is None:
        layer = with_weights(layer.config, arguments.input_shape, arguments.seed or 0)
    return [Workload(layer.config.name or "layer", layer, arguments.input_shape, **dtypes)]


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Ends the program with a usage error if options say nothing together."""
    weights = (name for name in ("kernel", "bias", "seed") if getattr(arguments, name) is not None)
    described = [*given_parameters(arguments), *weights]
    if arguments.input_shape is None and (described or arguments.layer is not None):
        arguments.refuse("a layer needs an input: give --input-shape")
    if described and arguments.layer is not None:
        arguments.refuse("--layer: the stored layer has parameters and weights already; give no others")


def _progress(text: str) -> None:
    """Shows on a terminal what is being done, in one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _counts(text: str) -> list[int]:
    found: Any = _numbers(text, int)
    if not found or min(found) < 1 or max(found) > 1000:
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to 1000 such as 1,8. Received {text!r}.")
    return found  # type: ignore[no-any-return]


def _rates(text: str) -> list[float]:
    found: Any = _numbers(text, float)
    if not found or not all(0 < each <= 1e6 for each in found):
        raise argparse.ArgumentTypeError(f"expected calls per second, above 0, such as 50,200. Received {text!r}.")
    return found  # type: ignore[no-any-return]


def _numbers(text: str, kind: type) -> list[Any]:
    """Returns the numbers between commas, or an empty list if something else is among them."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        return []
