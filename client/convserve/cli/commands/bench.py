"""`convserve bench`: is it fast here?"""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

import convserve
from convserve.bench.workloads import Workload, standard, with_weights
from convserve.cli.command import OUTPUT, Section, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.cli.options.layer import CALL, Parameters, call_options, layer_options
from convserve.cli.options.layer_reference import REFERENCE, find_alone
from convserve.cli.options.values import counts, rates, seconds
from convserve.cli.options.weights import Weights, layer_for, weight_options
from convserve.cli.output.report import show_progress
from convserve.files.writing import check_destination, whole_file
from convserve.layers.layer import Layer
from convserve.tensors.codec import Shape

_LOAD = Section("load")
_PICTURES = (".png", ".svg", ".pdf")


@new_command("bench")
@_LOAD.option(
    "--concurrency N[,N...]",
    "callers that call again as soon as they are answered, as threads that share a client (default: 1,8; none "
    "with --rate)",
    type=counts,
)
@_LOAD.option(
    "--rate N[,N...]",
    "calls per second that wait for no answer; latencies then count from when a call was due",
    dest="open_rates",
    type=rates,
)
@_LOAD.option("--seconds N", "how long to measure in all (default: 20)", dest="duration_s", type=seconds, default=20.0)
@_LOAD.option("--no-shared-memory", "send tensors over the connection, also to a server here")
@_LOAD.option("--no-in-process", "leave out the layer in this process")
@call_options(required=False)
@CALL.option("--layer NAME|DIGEST", f"a layer that the server stores: {REFERENCE}", dest="reference")
@OUTPUT.option("--json FILE", "write everything that was found; - for stdout, and no table", dest="json_path")
@OUTPUT.option("--plot FILE.png", "draw it (.png, .svg or .pdf); needs convserve[plot]")
@layer_options()
@weight_options
@connection_options(timeout=60.0)
def command(
    concurrency: list[int] | None,
    open_rates: list[float] | None,
    duration_s: float,
    no_shared_memory: bool,
    no_in_process: bool,
    json_path: str | None,
    plot: str | None,
    connection: Connection,
    **call: Any,
) -> int:
    from convserve.bench.measurement import Load, Measurement, is_right
    from convserve.cli.output.bench_table import print_document

    stored, shape = call["reference"], call["input_shape"]
    described = bool(call["parameters"]) or any(value is not None for value in call["weights"])
    if shape is None and (described or stored is not None):
        raise click.UsageError("a layer needs an input: give --input-shape")
    if described and stored is not None:
        raise click.UsageError("--layer: the stored layer has parameters and weights already; give no others")
    if json_path not in (None, "-"):
        check_destination(json_path, (".json",), "json")
    if plot is not None:
        check_destination(plot, _PICTURES, "plot")
        from convserve.bench import chart
    loads = [Load(callers=callers) for callers in concurrency or ([] if open_rates else [1, 8])]
    loads += [Load(rate=rate) for rate in open_rates or []]
    interrupted = False
    with (
        connection.client(shared_memory=not no_shared_memory) as client,
        Measurement(client, connection.address, loads, timeout=connection.timeout) as measurement,
    ):
        try:
            for workload in _workloads(client, **call):
                show_progress(f"preparing {workload.name}")
                measurement.add(workload, with_layer_in_process=not no_in_process)
            measurement.run(duration_s, show_progress)
        except KeyboardInterrupt:
            interrupted = True
        document = measurement.document()
        document |= {"command": shlex.join(["convserve", *sys.argv[1:]]), "interrupted": interrupted}
    show_progress("")
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if json_path == "-":
        print(text, end="")
    else:
        print_document(document)  # first: no file that cannot be written is to lose it
        if json_path is not None:
            with whole_file(json_path) as file:
                file.write(text.encode())
    if plot is not None and document["workloads"]:  # none if it was interrupted before the first was ready
        chart.write(document, plot)
        print(f"drawn in {plot}", file=sys.stderr)
    return 130 if interrupted else int(not is_right(document))


def _workloads(
    client: convserve.Client,
    input_shape: Shape | None,
    reference: str | None,
    parameters: Parameters,
    weights: Weights,
    **dtypes: Any,
) -> list[Workload]:
    """Returns what the options describe, or the standard workloads where they describe nothing."""
    if input_shape is None:
        return standard()
    if reference is not None:
        stored = find_alone(client, reference)
        layer = Layer(stored.config, *stored.weights())
        return [Workload(stored.name or reference[:12], layer, input_shape, **dtypes)]
    layer = layer_for(parameters, weights, input_shape[1 if parameters.get("data_format") == "channels_first" else -1])
    if layer.kernel is None:
        layer = with_weights(layer.config, input_shape, weights.seed or 0)
    return [Workload(layer.config.name or "layer", layer, input_shape, **dtypes)]
