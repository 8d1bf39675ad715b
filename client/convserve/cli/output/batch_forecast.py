"""What `convserve batch --dry-run` says: a line for each shape, and what all come to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from convserve.batch.dry_run import Forecast
from convserve.batch.formats.pictures import PICTURE_FORMATS
from convserve.batch.inputs import Inputs
from convserve.cli.output.batch_progress import left_out_text, on_a_line
from convserve.cli.output.report import print_result, shape_text
from convserve.display.units import bytes_text

_MAX_SHOWN = 20  # shapes, and failures


def show(coming: Forecast, inputs: Inputs, folder: Path, format_name: str, *, as_json: bool) -> None:
    """Prints what a run would do."""
    shapes = [{**asdict(each), "items": count} for each, count in coming.shapes.most_common()]
    failures = [{"input": key, "reason": reason} for key, reason in coming.failures]
    names = ("items", "samples", "skipped", "input_bytes", "output_bytes", "file_bytes", "calls")
    document = {
        "input": str(inputs.folder),
        "output": str(folder),
        "format": format_name,
        **{name: getattr(coming, name) for name in names},
        "shapes": shapes,
        "failures": failures,
        "left_out": inputs.left_out,
        "left_out_names": inputs.left_out_names,
    }
    print_result(_rows(coming, inputs, folder, format_name), document, as_json=as_json)


def _rows(coming: Forecast, inputs: Inputs, folder: Path, format_name: str) -> list[tuple[str, str]]:
    samples = f", of {coming.samples:,} samples" if coming.samples != coming.items else ""
    before = f"; {coming.skipped:,} done before" if coming.skipped else ""
    lines = [
        f"{count:,} of {shape_text(each.input_shape, each.input_dtype)}"
        f" -> {shape_text(each.output_shape, each.output_dtype)}"
        for each, count in coming.shapes.most_common(_MAX_SHOWN)
    ]
    further = len(coming.shapes) - len(lines)
    failed = [f"{on_a_line(key)}: {on_a_line(reason)}" for key, reason in coming.failures[:_MAX_SHOWN]]
    written = bytes_text(coming.file_bytes)
    if format_name in PICTURE_FORMATS:
        written += ", before they are compressed"
    return [
        ("dry run", "nothing is sent or written"),
        ("items", f"{coming.items:,}{samples}{before}"),
        ("shapes", "\n".join([*lines, *([f"and {further:,} more shapes"] if further > 0 else [])])),
        ("calls", f"{coming.calls:,} at least"),
        ("in", bytes_text(coming.input_bytes)),
        ("out", bytes_text(coming.output_bytes)),
        ("files", f"{coming.items:,} .{format_name} in {folder}, {written}"),
        ("failed", "\n".join([*failed, *([f"and {n:,} more" for n in [len(coming.failures) - len(failed)] if n > 0])])),
        ("left out", left_out_text(inputs.left_out, inputs.left_out_names)),
    ]
