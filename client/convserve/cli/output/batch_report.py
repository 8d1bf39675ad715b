"""What a run of `convserve batch` came to: lines for people, a document for programs and for the folder of outputs."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from convserve.batch.inputs import Inputs
from convserve.batch.runner import Batch
from convserve.cli.output.batch_progress import speed_text
from convserve.cli.output.report import print_result
from convserve.display.units import bytes_text

REPORT = "report.json"
"""The report's name in the folder for outputs."""
_MAX_SHOWN = 20
_COUNTS = ("items", "done", "skipped", "failed", "left", "samples", "input_bytes", "output_bytes")
_OTHERS = {"skipped": "done before", "failed": "failed", "left": "not done"}


def publish(
    batch: Batch, inputs: Inputs, folder: Path, as_json: bool, number: int | None, failure: Exception | None
) -> dict[str, Any]:
    """Writes what a run came to, which a signal or a failure may have ended, to the report's file, and prints it."""
    counts, seconds = batch.tally.counts, batch.tally.seconds
    moved = counts.input_bytes + counts.output_bytes
    stopped = None if number is None else signal.Signals(number).name
    report = {
        "input": str(inputs.folder),
        "output": str(folder),
        **{name: getattr(counts, name) for name in _COUNTS},
        "seconds": round(seconds, 3),
        "mb_per_s": round(moved / seconds / 1e6, 3),
        "stopped": (str(failure) or type(failure).__name__) if failure is not None else stopped,
        "failures": [{"input": key, "reason": reason} for key, reason in batch.tally.failures],
    }
    path = folder / REPORT
    partial_path = path.with_name(f"{path.name}.partial")
    try:
        partial_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(partial_path, path)
    except OSError as error:  # the same report is printed, and a full disk has an error of its own
        print(f"{path} was not written: {error.strerror or error}", file=sys.stderr)
    print_result(_rows(report, folder), report, as_json=as_json)
    return report


def _rows(report: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    parts = [f"{report['done']:,} done"]
    parts += [f"{report[name]:,} {text}" for name, text in _OTHERS.items() if report[name]]
    samples = f", of {report['samples']:,} samples" if report["samples"] != report["done"] else ""
    seconds = f"{report['seconds']:,.1f} s, {speed_text(report['mb_per_s'] * 1e6)} in and out together"
    failures = [f"{failed['input']}: {failed['reason']}" for failed in report["failures"][:_MAX_SHOWN]]
    if report["failed"] > len(failures):
        failures.append(f"and {report['failed'] - len(failures):,} more, in {folder / REPORT}")
    advice = "--resume does the rest" if report["left"] else ""
    if report["failed"] and not report["left"]:
        advice = "--retry-failed tries what failed again"
    return [
        ("items", f"{report['items']:,}: {', '.join(parts)}{samples}"),
        ("in", bytes_text(report["input_bytes"])),
        ("out", bytes_text(report["output_bytes"])),
        ("time", seconds),
        ("failed", "\n".join(failures)),
        ("written", str(folder)),
        ("next", advice),
    ]
