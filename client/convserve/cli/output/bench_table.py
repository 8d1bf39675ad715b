"""What `convserve bench` prints: a table per workload and load."""

from __future__ import annotations

from typing import Any

from convserve.cli.output.report import print_rows, print_table, shape_text, short_text
from convserve.display.units import bytes_text, duration_text, flops_text

_COLUMNS = ("p50", "p90", "p99", "max", "calls/s", "MB/s\nsent", "MB/s\nback", "latency\nratio", "calls/s\nratio")
_WORDS = {True: "on", False: "off", None: "not measured"}


def print_document(document: dict[str, Any]) -> None:
    """Prints what a measurement found."""
    server = document["server"]
    interruption = " until it was interrupted" if document["interrupted"] else ""
    print_rows(
        [
            ("server", f"{document['target']}, convserve {server['convserve']}, {', '.join(server['devices'])}"),
            ("oneDNN", f"on the server {_WORDS[server['onednn']]}, in process {_WORDS[document['onednn']]}"),
            ("here", document["machine"]),
            ("tensors", "in shared memory, large ones" if document["shared_memory"] else "over the connection"),
            ("time", f"{document['time']}, measured for {document['seconds']:.1f} s{interruption}"),
        ]
    )
    for workload in document["workloads"]:
        print()
        _print_workload(workload)


def _print_workload(workload: dict[str, Any]) -> None:
    sent, received = workload["input"], workload["output"]
    print(
        f"{workload['name']}: {shape_text(sent['shape'], sent['dtype'])} to "
        f"{shape_text(received['shape'], received['dtype'])}, {bytes_text(sent['bytes'])} there and "
        f"{bytes_text(received['bytes'])} back, {flops_text(workload['flops'])}"
    )
    print(f"  {_answers(workload['check'])}")
    for name, reason in workload["absent"].items():
        print(f"  not measured, {name}: {reason}")
    for load in workload["loads"]:
        _print_load(load)


def _answers(check: dict[str, Any]) -> str:
    if check["ok"] is None:
        return "answers not checked: that needs TensorFlow, or a layer whose activation is none or relu"
    apart = "of another shape or dtype, or NaN" if check["difference"] is None else f"{check['difference']:.1g}"
    if check["ok"]:
        return f"answers right: as {check['against']}, within {apart} of the largest value"
    return f"WRONG ANSWERS: compared with {check['against']}: {apart} of the largest value, limit {check['limit']:.1g}"


def _print_load(load: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = []
    notes = ["ratios: convserve's figure divided by that of the row"] if load["over"] else []
    for name, figures in load["subjects"].items():
        if "p50_ms" not in figures:
            rows.append((f"    {name}", "no answer" if figures["failures"] else "not measured yet", *[""] * 8))
        else:
            latencies = (duration_text(figures[f"{key}_ms"] * 1e3) for key in ("p50", "p90", "p99", "max"))
            rates = (short_text(figures[key]) for key in ("calls_per_s", "sent_mb_per_s", "received_mb_per_s"))
            over = load["over"].get(name)
            ratios = (f"{over[key]:.2f}" for key in ("latency", "rate")) if over else ("", "")
            rows.append((f"    {name}", *latencies, *rates, *ratios))
        if figures["failures"]:
            counts = ", ".join(f"{number} {kind}" for kind, number in figures["failures"].items())
            notes.append(f"{name}: failed calls: {counts}: {figures['failure'].partition(chr(10))[0]}")
        if figures["not_begun"]:
            late = f"{figures['not_begun']} calls were not begun in time, and latencies only grow with the time"
            notes.append(f"{name}: too slow for this rate: {late}")
        if "compute_ms" in figures:
            notes.append(_where(name, figures))
    print_table(("", *_COLUMNS), rows, title=f"  {load['load']}", numbers=len(_COLUMNS))
    for note in notes:
        print(f"    {note}")


def _where(name: str, figures: dict[str, Any]) -> str:
    total = figures["queue_ms"] + figures["compute_ms"] + figures["way_ms"]
    parts = {"waiting": "queue_ms", "computing": "compute_ms", "on the way": "way_ms"}
    shares = ", ".join(f"{what} {figures[key] / total:.0%}" for what, key in parts.items())
    mean = figures["mean_batch_size"]
    batch = f"{mean:.3g} sample{'s' if mean != 1 else ''} at once"
    most = figures["largest_batch_size"]
    return f"{name}'s time: {shares}; {batch}" + (f", {most} at most" if most > mean else "")
