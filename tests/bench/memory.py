"""Memory and bytes: growth over many calls, what a byte costs from 1 KB to 1 GB, and the peak of one request.

Each is found over gRPC and, with --shared-memory, through shared memory. Linux: it reads /proc. At full length it takes
20 minutes or so for each of the two, and 8 GB of memory. The exit status is 1 if memory grew or the peak is too high.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import convserve
from tests.bench import record, tables
from tests.support.processes import forget_peak, status
from tests.support.servers.server_process import RunningServer, running_server

MAX_GROWTH_BYTES = 32_000_000
MAX_PEAK = 2.5
"""Of the server for one request, as a multiple of its input and output."""
_SMALL = (1, 32, 32, 3), convserve.Conv2D(16, 3, padding="same", activation="relu", data_format="channels_last")
_LARGE = (4, 600, 600, 3), convserve.Conv2D(64, 1, data_format="channels_last")
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
_PEAKS = (10_000_000, 100_000_000, 1_000_000_000)
_TIMEOUT_S = 600.0


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = record.parser("memory", __doc__)
    parser.add_argument("--shared-memory", action="store_true", help="move tensors through shared memory")
    parser.add_argument(
        "--only", choices=("growth", "bytes", "peak"), help="one of the three, beside what is in the file of --json"
    )
    arguments = parser.parse_args()
    shared = arguments.shared_memory
    result = record.begun("memory", arguments, path="shared memory" if shared else "gRPC")
    if arguments.only and arguments.json and arguments.json.exists():
        result = json.loads(arguments.json.read_text(encoding="utf-8")) | result
    parts = {"growth": _growth, "bytes": _cost_per_byte, "peak": _peak}
    for name, find in parts.items():
        if arguments.only in (None, name):
            result[name] = find(arguments.quick, shared)
            record.write(arguments, result)
    print(tables.memory(result))
    grown = any(each["grown_bytes"] > MAX_GROWTH_BYTES for case in result.get("growth", []) for each in case["sides"])
    high = any(each["ratio"] > MAX_PEAK for each in result.get("peak", []))
    return 1 if grown or high else 0


@contextmanager
def _service(shared: bool) -> Iterator[tuple[RunningServer, convserve.Client]]:
    arguments = ("--shared-memory",) if shared else ()
    with (
        running_server(*arguments) as server,
        convserve.Client(server.target, timeout=_TIMEOUT_S, shared_memory=shared) as client,
    ):
        yield server, client


def _growth(quick: bool, shared: bool) -> list[dict[str, Any]]:
    """Returns the resident sizes of both sides before, during and after many calls, small ones and large ones."""
    found = []
    with _service(shared) as (server, client):
        for what, (shape, config), calls in (
            ("small", _SMALL, 2_000 if quick else 100_000),
            ("large", _LARGE, 4 if quick else 200),
        ):
            x = np.random.default_rng(0).random(shape, dtype=np.float32)
            layer = client.put(config, input_channels=shape[3], seed=0)
            steps = 10 if calls >= 100 else 2
            for _ in range(max(2, calls // 10)):  # allocators take what they then keep
                layer(x)
            sizes = [_resident(server)]
            for _ in range(steps):
                for _ in range(calls // steps):
                    layer(x)
                sizes.append(_resident(server))
            sides = [
                {"side": side, "resident_bytes": column, "grown_bytes": column[-1] - column[0]}
                for side, column in zip(("client", "server"), zip(*sizes, strict=True), strict=True)
            ]
            found.append({"what": what, "calls": calls, "input_shape": shape, "sides": sides})
            print(f"{what}: {calls} calls", {each["side"]: each["grown_bytes"] for each in sides}, flush=True)
    return found


def _cost_per_byte(quick: bool, shared: bool) -> list[dict[str, Any]]:
    """Returns latencies of a layer that does next to nothing, for inputs and outputs of so many bytes each."""
    sizes = _SIZES[:-2] if quick else _SIZES
    latencies: dict[int, list[float]] = {size: [] for size in sizes}
    computing: dict[int, list[float]] = {size: [] for size in sizes}
    with _service(shared) as (_, client):
        layer = client.put(_copy(), kernel=np.ones((1, 1, 1, 1), np.float32))
        for number in range(2 if quick else 6):
            for size in sizes:
                x = _image(size)
                # Enough calls for a tenth of a second; the first round warms up.
                for _ in range(1 if number == 0 else max(1, min(50, 20_000_000 // size))):
                    begin = time.perf_counter()
                    result = client.convolve(layer, x)
                    took = time.perf_counter() - begin
                    if number:
                        latencies[size].append(took)
                        computing[size].append(result.timing.compute_us / 1e6)
                    elif not np.array_equal(result.output, x):
                        raise SystemExit(f"a wrong answer for {size} bytes")
                    del result
    found = []
    for size in sizes:
        latency, compute = statistics.median(latencies[size]), statistics.median(computing[size])
        moved = 2 * _image(size).nbytes
        found.append(
            {
                "bytes_each_way": moved // 2,
                "p50_ms": 1e3 * latency,
                "compute_ms": 1e3 * compute,
                "ns_per_byte": 1e9 * latency / moved,
                "ns_per_byte_moved": 1e9 * (latency - compute) / moved,
            }
        )
        print(found[-1], flush=True)
    return found


def _peak(quick: bool, shared: bool) -> list[dict[str, Any]]:
    """Returns the most memory that a fresh server took beyond its idle state for one request of each size."""
    cases = [("1x1, one channel", _image(size), _copy()) for size in (_PEAKS[:1] if quick else _PEAKS)]
    if not quick:
        x = np.random.default_rng(0).random(_LARGE[0], dtype=np.float32)
        cases.append(("W5", x, _LARGE[1]))
    found = []
    for what, x, config in cases:
        with _service(shared) as (server, client):
            layer = client.put(config, input_channels=x.shape[3], seed=0)
            layer(x[:, :8, :8])  # traced and connected
            forget_peak(server.process.pid)
            before = status(server.process.pid, "VmRSS")
            y = layer(x)
            peak = status(server.process.pid, "VmHWM") - before
            found.append(
                {"what": what, "bytes": x.nbytes + y.nbytes, "peak_bytes": peak, "ratio": peak / (x.nbytes + y.nbytes)}
            )
            print(found[-1], flush=True)
    return found


def _copy() -> convserve.Conv2D:
    """Returns a layer whose output is its input, times one weight."""
    return convserve.Conv2D(1, 1, use_bias=False, data_format="channels_last", dtype="float32")


def _image(size: int) -> Any:
    """Returns an input of about so many bytes: (1, height, 250, 1) float32."""
    return np.random.default_rng(0).random((1, size // 1000, 250, 1), dtype=np.float32)


def _resident(server: RunningServer) -> tuple[int, int]:
    """Returns the resident bytes of this process and of the server, the least of a second without calls.

    What this process' C library keeps for the next result, without limit to speak of, is given back first: what is left
    is what is in use. The server's settings bound what its own keeps.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    seen = []
    for _ in range(5):
        time.sleep(0.2)
        seen.append((status(os.getpid(), "VmRSS"), status(server.process.pid, "VmRSS")))
    client, served = zip(*seen, strict=True)
    return min(client), min(served)


if __name__ == "__main__":
    sys.exit(main())
