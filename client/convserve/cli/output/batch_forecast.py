"""What `convserve batch --dry-run` says: a line for each shape, and what all come to."""

from __future__ import annotations

from convserve.batch.dry_run import Forecast
from convserve.batch.formats.pictures import Pictures
from convserve.batch.job import Job
from convserve.cli.output.batch_progress import left_out_text, on_a_line
from convserve.cli.output.report import first_lines, print_result, shape_text
from convserve.display.units import bytes_text


def show(coming: Forecast, job: Job, *, as_json: bool) -> None:
    """Prints what a run would do."""
    counted = {name: value for name, value in vars(coming).items() if isinstance(value, int)}
    document = {
        "input": str(job.inputs.folder),
        "output": str(job.outputs.folder),
        "format": job.outputs.format.suffix.removeprefix("."),
        **counted,
        "shapes": [{**each._asdict(), "items": count} for each, count in coming.shapes.most_common()],
        "failures": [{"input": key, "reason": reason} for key, reason in coming.failures],
        "left_out": job.inputs.left_out,
        "left_out_names": job.inputs.left_out_names,
    }
    print_result(_rows(coming, job), document, as_json=as_json)


def _rows(coming: Forecast, job: Job) -> list[tuple[str, str]]:
    samples = f", of {coming.samples:,} samples" if coming.samples != coming.items else ""
    before = f"; {coming.skipped:,} done before" if coming.skipped else ""
    shapes = [
        f"{count:,} of {shape_text(each.input_shape, each.input_dtype)}"
        f" -> {shape_text(each.output_shape, each.output_dtype)}"
        for each, count in coming.shapes.most_common()
    ]
    failed = [f"{on_a_line(key)}: {on_a_line(reason)}" for key, reason in coming.failures]
    written = bytes_text(coming.file_bytes)
    if isinstance(job.outputs.format, Pictures):
        written += ", before they are compressed"
    return [
        ("dry run", "nothing is sent or written"),
        ("items", f"{coming.items:,}{samples}{before}"),
        ("shapes", first_lines(shapes, "more shapes")),
        ("calls", f"{coming.calls:,} at least"),
        ("in", bytes_text(coming.input_bytes)),
        ("out", bytes_text(coming.output_bytes)),
        ("files", f"{coming.items:,} {job.outputs.format.suffix} in {job.outputs.folder}, {written}"),
        ("failed", first_lines(failed, "more")),
        ("left out", left_out_text(job.inputs.left_out, job.inputs.left_out_names)),
    ]
