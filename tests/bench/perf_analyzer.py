"""NVIDIA's perf_analyzer against a server of its own: calls per second, latency, and what the server says of its part.

--binary names perf_analyzer. Its wheel wants glibc 2.38 or newer; `./install perf_analyzer` of the peers' kit makes it
run elsewhere too. The layers are those of the peers: W1 (1x32x32x3, 16 filters) and W2 (1x56x56x64, 64 filters).
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import convserve
from tests.bench import record, tables
from tests.support.servers.server_process import running_server

_CHANNELS = {"w1": (3, 16), "w2": (64, 64)}
_SHAPES = {"w1": "32,32,3", "w2": "56,56,64"}
_OUTPUT_BYTES = {"w1": 65_536, "w2": 802_816}
WAYS = {
    "one after the other": [],
    "8 at once": ["--concurrency-range", "8"],
    "batches of 4": ["-b", "4"],
    "streaming, 8 at once": ["--streaming", "--concurrency-range", "8"],
    "system shared memory": ["--shared-memory", "system"],
}
_COLUMNS = {
    "samples_per_s": "Inferences/Second",
    "p50_us": "p50 latency",
    "network_us": "Network+Server Send/Recv",
    "queue_us": "Server Queue",
    "compute_input_us": "Server Compute Input",
    "compute_infer_us": "Server Compute Infer",
    "compute_output_us": "Server Compute Output",
}


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = record.parser("perf_analyzer", __doc__)
    parser.add_argument(
        "--binary", default="perf_analyzer", metavar="FILE", help="perf_analyzer (default: on the path)"
    )
    arguments = parser.parse_args()
    result = record.begun("perf_analyzer", arguments, runs=[])
    with running_server("--shared-memory") as server:
        with convserve.Client(server.target) as client:
            for name, (channels, filters) in _CHANNELS.items():
                kernel = np.random.default_rng(0).normal(size=(3, 3, channels, filters)).astype("f4")
                config = convserve.Conv2D(
                    filters, 3, padding="same", activation="relu", use_bias=False, data_format="channels_last"
                )
                client.put(config, kernel=kernel, name=name)
        for name in _CHANNELS:
            for what, options in WAYS.items():
                result["runs"].append({"layer": name, "what": what, **_run(arguments, server.target, name, options)})
                record.write(arguments, result)
    print(tables.perf_analyzer(result))
    return 0


def _run(arguments: Any, target: str, layer: str, options: list[str]) -> dict[str, float]:
    """Returns what perf_analyzer writes of one run."""
    # Three stretches, however much they differ: it would go on for long on a machine that has something else to do.
    window = ["--measurement-interval", "1000" if arguments.quick else "5000", "-r", "3", "-s", "999"]
    shared = ["--output-shared-memory-size", str(_OUTPUT_BYTES[layer])] if "--shared-memory" in options else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        command = [arguments.binary, "-i", "grpc", "--service-kind", "triton", "-u", target, "-m", layer]
        command += ["--shape", f"x:{_SHAPES[layer]}", "-f", str(report), *window, *options, *shared]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with report.open(newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file))
    return {key: float(row[column]) for key, column in _COLUMNS.items()}


if __name__ == "__main__":
    sys.exit(main())
