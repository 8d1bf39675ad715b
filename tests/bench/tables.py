"""Results as Markdown: what the programs print is what docs/performance.md and the README show."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]

PEERS = {
    "convserve_shm_peer": "**convserve, shared memory**",
    "convserve_peer": "**convserve, gRPC**",
    "inproc_tf": "the layer in process, again",
    "inproc_keras": "an eager Keras layer in process",
    "open_inference_shm_peer": "**convserve, tritonclient with system shared memory**",
    "open_inference_peer": "**convserve, tritonclient**",
    "triton_backend": "NVIDIA Triton, Python backend",
    "triton_shm_peer": "NVIDIA Triton, Python backend, system shared memory",
    "triton_pytriton": "NVIDIA PyTriton",
    "hand_raw": "hand-written grpcio, bytes",
    "hand_float": "hand-written grpcio, repeated float",
    "kserve": "KServe",
    "mlserver": "MLServer",
    "rayserve": "Ray Serve",
    "mosec": "mosec (HTTP, msgpack)",
    "litserve": "LitServe (HTTP)",
}
_CELLS = {
    "w1c1": "W1 latency", "w1c8": "W1 rate of 8", "w2c1": "W2 latency", "w2c8": "W2 rate of 8", "w3c1": "W3 latency",
    "w3c8": "W3 rate of 8", "w4c1": "W4 latency", "w5c1": "W5 latency",
}  # fmt: skip
"""The kit's cells; a latency of one caller, or calls per second of eight."""
_WAYS = ("convserve_peer", "convserve_shm_peer")
_OPEN_INFERENCE_WAYS = (("open_inference_peer", "triton_backend"), ("open_inference_shm_peer", "triton_shm_peer"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def provenance(result: Result) -> str:
    """Returns where a result comes from, as a line under its table."""
    quick = " A quick pass, not for quoting." if result["quick"] else ""
    return (
        f"`{result['command']}`, {result['time'][:10]}, {result['machine']}, convserve {result['convserve']} "
        f"({result['commit']}), Python {result['python']}.{quick}"
    )


def peers(result: Result) -> str:
    """Returns the peers' table: multiples of the layer in process, and their spread over the rounds."""
    runs: dict[str, list[Result]] = {}
    for each in result["results"]:
        runs.setdefault(each["peer"], []).append(each)
    cells = [cell for cell in _CELLS if any(cell in run for listed in runs.values() for run in listed)]
    first = {name: number for number, name in enumerate(PEERS)}
    ordered = sorted(runs, key=lambda name: first.get(name, len(first)))
    ratios = [
        [PEERS.get(name, name), *(_spread(runs[name], cell) for cell in cells), _greatest_difference(runs[name])]
        for name in ordered
    ]
    reference = ["the layer in process (tf.function) = 1", *(_reference(result["results"], each) for each in cells), ""]
    absolute = [
        [PEERS.get(name, name), *(_own(runs[name], each) for each in cells), _start(runs[name])] for name in ordered
    ]
    return "\n\n".join(
        [
            table(["multiple of the layer in process", *(_CELLS[each] for each in cells), "differs by"], ratios),
            table(["p50 in ms, or calls/s", *(_CELLS[each] for each in cells), "starts in s"], [reference, *absolute]),
            provenance(result),
        ]
        + [
            f"* {PEERS.get(each['peer'], each['peer'])}: {each['error']}"
            for each in result["results"]
            if "error" in each
        ]
    )


def cost(result: Result) -> str:
    """Returns what a call costs beside the same layer computed in process, for someone who has a minute."""
    calls = {
        "w1c1": "a picture of 32x32, 16 filters", "w2c1": "a network's middle layer, 56x56x64",
        "w3c1": "a photograph of 224x224, 64 filters", "w4c1": "32 samples of 56x56x64",
        "w5c1": "4 photographs of 600x600, 369 MB back",
    }  # fmt: skip
    ways = ("inproc_keras", "convserve_shm_peer", "convserve_peer")
    runs = {name: [each for each in result["results"] if each["peer"] == name] for name in ways}
    rows = [
        [what, _reference(result["results"], cell), *(_own(runs[name], cell) for name in ways)]
        for cell, what in calls.items()
    ]
    head = ["ms a call", "TensorFlow here", "Keras here", "shared memory", "gRPC"]
    machine = result["machine"].partition(", Linux")[0]
    return f"{table(head, rows)}\n\n`make bench`, {result['time'][:10]}, {machine}."


def headline(result: Result) -> str:
    """Returns in one sentence how a call to another process compares with an eager Keras layer in one's own."""
    runs = {name: [each for each in result["results"] if each["peer"] == name] for name in (*_WAYS, "inproc_keras")}
    won, lost = [], []
    for cell in (cell for cell in _CELLS if cell.endswith("c1")):
        ours, keras = (median_of(runs[name], cell, "ratio") for name in ("convserve_shm_peer", "inproc_keras"))
        if ours is not None and keras is not None:
            text = f"{cell[:2].upper()} ({short(ours)} against {short(keras)})"
            (won if ours < keras else lost).append(text)
    basis = "in multiples of a `tf.function` in process, callers and server sharing the same cores"
    if not won:
        cost = "A call to another process takes longer than an eager Keras layer in one's own"
        return f"{cost}: {', '.join(lost)}, {basis}."
    besides = f"; not for {', '.join(lost)}" if lost else ""
    return (
        "A call to another process can beat an eager Keras layer in one's own: through shared memory it does for "
        f"{', '.join(won)}{besides}, {basis}."
    )


def open_inference(result: Result) -> str:
    """Returns what Triton's client measures of convserve and of Triton's own server."""
    return f"{beside_triton(result)}\n\n{peers(result)}"


def beside_triton(result: Result) -> str:
    """Returns what Triton's client measures of convserve as multiples of Triton's own server."""
    rows = []
    for cell, name in _CELLS.items():
        row = [name]
        for pair in _OPEN_INFERENCE_WAYS:
            ours, theirs = (
                median_of([each for each in result["results"] if each["peer"] == peer], cell, "ratio") for peer in pair
            )
            row.append("-" if ours is None or theirs is None else short(ours / theirs))
        rows.append(row)
    return table(["multiple of NVIDIA Triton", "gRPC", "system shared memory"], rows)


def perf_analyzer(result: Result) -> str:
    """Returns the table of `perf_analyzer`."""
    keys = ("network_us", "queue_us", "compute_input_us", "compute_infer_us", "compute_output_us")
    rows = [
        [f"{each['layer'].upper()}, {each['what']}", short(each["samples_per_s"]), short(each["p50_us"] / 1e3)]
        + [f"{each[key]:,.0f}" for key in keys]
        for each in result["runs"]
    ]
    head = ["samples/s", "p50, ms", "on the way, us", "queue, us", "input, us", "compute, us", "output, us"]
    return f"{table(['perf_analyzer', *head], rows)}\n\n{provenance(result)}"


def memory(result: Result) -> str:
    """Returns the tables of `memory`: growth, cost per byte, and peak."""
    parts = []
    if "growth" in result:
        rows = []
        for case in result["growth"]:
            for each in case["sides"]:
                sizes = each["resident_bytes"][0], each["resident_bytes"][-1], each["grown_bytes"]
                rows.append([f"{case['calls']:,} {case['what']} calls", each["side"], *map(_mb, sizes)])
        parts.append(table([f"{result['path']}: resident size, MB", "side", "before", "after", "grown by"], rows))
    if "bytes" in result:
        keys = ("p50_ms", "compute_ms", "ns_per_byte", "ns_per_byte_moved")
        rows = [[f"{each['bytes_each_way']:,}", *(short(each[key]) for key in keys)] for each in result["bytes"]]
        head = ["p50, ms", "of it computing, ms", "ns a byte", "ns a byte, without computing"]
        parts.append(table([f"{result['path']}: bytes each way", *head], rows))
    if "peak" in result:
        rows = [
            [each["what"], _mb(each["bytes"]), _mb(each["peak_bytes"]), f"{each['ratio']:.2f}"]
            for each in result["peak"]
        ]
        head = [f"{result['path']}: one request", "input and output, MB", "the server's peak, MB", "ratio"]
        parts.append(table(head, rows))
    return "\n\n".join([*parts, provenance(result)])


def pipeline(result: Result) -> str:
    """Returns the tables of `pipeline`: photographs beside a tf.data loop, and small items."""
    photographs, small = result["photographs"], result["small"]

    def middle(key: str) -> float:
        return statistics.median(turn[key] for turn in photographs["turns"])

    beside = [
        ["a tf.data loop in process", short(middle("in_process_per_s")), "1", short(middle("in_process_processor_ms"))],
        ["`client.map`", short(middle("per_s")), f"{photographs['ratio']:.2f}", short(middle("processor_ms"))],
    ]
    head = [f"{photographs['items']:,} photographs, {result['path']}", "items/s", "/ tf.data", "processor, ms each"]
    ways = [
        ["`client.map`, together as they fit", short(small["together_per_s"])],
        ["`client.map`, each in a call of its own", short(small["alone_per_s"])],
        ["a loop that waits for each", short(small["loop_per_s"])],
    ]
    grown = f"The server's resident memory grew by {_mb(photographs['server_grown_bytes'])} MB."
    small_table = table([f"{small['items']:,} small items (W1)", "items/s"], ways)
    return "\n\n".join([table(head, beside), grown, small_table, provenance(result)])


def median_of(runs: Sequence[Result], cell: str, key: str) -> float | None:
    """Returns the median of a figure over a peer's runs, or None if it was never measured."""
    values = [run[cell][key] for run in runs if key in run.get(cell, {})]
    return statistics.median(values) if values else None


def _spread(runs: Sequence[Result], cell: str) -> str:
    values = [run[cell]["ratio"] for run in runs if "ratio" in run.get(cell, {})]
    if not values:
        return "-"
    middle = f"**{short(statistics.median(values))}**"
    return middle if len(values) == 1 else f"{middle} {short(min(values))}..{short(max(values))}"


def _own(runs: Sequence[Result], cell: str) -> str:
    return _figure(runs, cell, "rps" if cell.endswith("c8") else "p50_ms")


def _reference(runs: Sequence[Result], cell: str) -> str:
    return _figure(runs, cell, "ref_rps" if cell.endswith("c8") else "ref_p50_ms")


def _figure(runs: Sequence[Result], cell: str, key: str) -> str:
    value = median_of(runs, cell, key)
    return "-" if value is None else short(value)


def _greatest_difference(runs: Sequence[Result]) -> str:
    checks = [check for run in runs for check in run["check"].values()]
    if not checks or any(check.get("maxdiff") is None for check in checks):
        return "WRONG"
    return f"{max(check['maxdiff'] for check in checks):.1g}"


def _start(runs: Sequence[Result]) -> str:
    starts = [run["start_s"] for run in runs if "start_s" in run]
    return short(statistics.median(starts)) if starts else "-"


def short(value: float) -> str:
    """Returns a number with as many digits as are worth reading."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mb(amount: float) -> str:
    return f"{amount / 1e6:,.1f}"
