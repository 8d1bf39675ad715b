"""What `convserve batch` says: beforehand what it would do, on the way how far it is, in the end what it came to."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.batch.counters import Counts, Pace, Tally
from convserve.batch.dry_run import Forecast
from convserve.batch.formats.pictures import Pictures
from convserve.batch.job import Job
from convserve.batch.runner import Batch
from convserve.cli.output.report import MAX_LINES, first_lines, print_result, shape_text
from convserve.display.units import bytes_text
from convserve.errors import printable
from convserve.files.writing import whole_file

if TYPE_CHECKING:
    from rich.console import Console

REPORT = "report.json"
"""The report's name in the folder for outputs."""
_COUNTS = ("items", "done", "skipped", "failed", "left", "samples", "input_bytes", "output_bytes", "file_bytes")
_OTHERS = {"skipped": "done before", "failed": "failed", "left": "not done"}
_LINE_S = 10.0
_NARROW = 72  # columns, below which a bar would leave no room for what stands beside it
_MAX_NAMES = 3  # of what is left out, of each kind


class Progress:
    """Shows texts on stderr and, while a run is watched, how far it is. Any thread may call its methods."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        """Shows texts alone if `quiet`; on stderr, if no other console is given."""
        from rich.console import Console

        self._console = console or Console(stderr=True)
        # Else rich ends the program, of which stderr is the least part.
        self._console.on_broken_pipe = lambda: None  # type: ignore[method-assign]
        self._quiet = quiet
        self._failures = itertools.count(1)
        self._shown = ExitStack()

    def watch(self, tally: Tally) -> None:
        """Begins to show these counts: a bar below the texts, drawn four times a second, or lines for a log."""
        if self._quiet:
            return
        pace = Pace()
        if self._console.is_terminal:
            from rich.live import Live

            def drawn() -> Any:
                show = line_of if self._console.width < _NARROW else bar_of
                return show(tally.counts, *pace.see(time.monotonic(), tally.counts))

            with suppress(OSError):
                self._shown.enter_context(Live(get_renderable=drawn, console=self._console, refresh_per_second=4))
            return
        over = threading.Event()

        def repeat() -> None:
            pace.see(time.monotonic(), tally.counts)
            while not over.wait(_LINE_S):
                self.show(line_of(tally.counts, *pace.see(time.monotonic(), tally.counts)))

        threading.Thread(target=repeat, name="convserve-progress", daemon=True).start()
        self._shown.callback(over.set)

    def show(self, text: str) -> None:
        """Shows a line of text."""
        with suppress(OSError):  # nobody reads stderr any more, or it is full
            self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def show_failure(self, key: str, reason: str) -> None:
        """Shows that an item failed, unless there were many before."""
        number = next(self._failures)
        if number <= MAX_LINES:
            self.show(f"failed: {on_a_line(key)}: {on_a_line(reason)}")
        elif number == MAX_LINES + 1:
            self.show("failed: further ones are in the report")

    def close(self) -> None:
        """Shows the counts once more on a terminal, and no more. It may be called again."""
        with suppress(OSError):  # of a terminal that has gone
            self._shown.close()


def line_of(counts: Counts, bytes_per_s: float | None, left_s: float | None) -> str:
    """Returns "3,512 of 10,000 items (35%), 41.2 MB/s, 0:02:10 left, 2 failed"."""
    items, speed, left, failed = _texts(counts, bytes_per_s, left_s)
    parts = (f"{items} items ({percent_text(counts)})", speed, left, failed if counts.failed else "")
    return ", ".join(filter(None, parts))


def bar_of(counts: Counts, bytes_per_s: float | None, left_s: float | None) -> Any:
    """Returns what rich draws: a bar with the items, the speed, the time that is left and the failures."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, 1, None, None, None, None):
        table.add_column(ratio=ratio, no_wrap=True)
    items, speed, left, failed = _texts(counts, bytes_per_s, left_s)
    done = counts.items - counts.left + counts.parts
    bar = ProgressBar(max(counts.items, 1), done, complete_style="cyan", finished_style="green")
    table.add_row(items, bar, percent_text(counts), speed, left, f"[red]{failed}[/]" if counts.failed else failed)
    return table


def percent_text(counts: Counts) -> str:
    """Returns "35%", of an array that comes in parts too; 100% is all of it."""
    return f"{int(100 * (counts.items - counts.left + counts.parts) / max(counts.items, 1) + 1e-9)}%"


def _texts(counts: Counts, bytes_per_s: float | None, left_s: float | None) -> tuple[str, str, str, str]:
    """Returns "3,512 of 10,000", "41.2 MB/s", "0:02:10 left" and "2 failed", "" for what is not known."""
    speed = "" if bytes_per_s is None else _speed_text(bytes_per_s)
    left = "" if left_s is None else f"{timedelta(seconds=round(left_s))} left"
    return f"{counts.items - counts.left:,} of {counts.items:,}", speed, left, f"{counts.failed:,} failed"


def _speed_text(bytes_per_s: float) -> str:
    """Returns "41.2 MB/s"; what is slow has decimals, what is fast has none."""
    amount = bytes_per_s / 1e6
    return f"{amount:,.0f} MB/s" if amount >= 100 else f"{amount:.3g} MB/s"


def show_forecast(coming: Forecast, job: Job, *, as_json: bool) -> None:
    """Prints what a run would do."""
    counted = {name: value for name, value in vars(coming).items() if isinstance(value, int)}
    document = {
        "input": str(job.inputs.folder),
        "output": os.path.abspath(job.outputs.folder),
        "format": job.outputs.format.suffix.removeprefix("."),
        **counted,
        "shapes": [{**each._asdict(), "items": count} for each, count in coming.shapes.most_common()],
        "failures": [{"input": key, "reason": reason} for key, reason in coming.failures],
        "left_out": job.inputs.left_out,
        "left_out_names": job.inputs.left_out_names,
    }
    print_result(_forecast_rows(coming, job), document, as_json=as_json)


def _forecast_rows(coming: Forecast, job: Job) -> list[tuple[str, str]]:
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
        ("in", f"{bytes_text(coming.input_bytes)} of arrays"),
        ("out", f"{bytes_text(coming.output_bytes)} of arrays"),
        ("files", f"{coming.items:,} {job.outputs.format.suffix} in {job.outputs.folder}, {written}"),
        ("failed", first_lines(failed, "more")),
        ("left out", left_out_text(job.inputs.left_out, job.inputs.left_out_names)),
    ]


def publish(batch: Batch, as_json: bool, number: int | None, failure: Exception | None) -> dict[str, Any]:
    """Writes what a run came to, which a signal or a failure may have ended, to the report's file, and prints it."""
    inputs, folder = batch.job.inputs, batch.job.outputs.folder
    counts, seconds = batch.tally.counts, batch.tally.seconds
    moved = counts.input_bytes + counts.output_bytes
    stopped = None if number is None else signal.Signals(number).name
    report = {
        "input": str(inputs.folder),
        "output": os.path.abspath(folder),
        **{name: getattr(counts, name) for name in _COUNTS},
        "seconds": round(seconds, 3),
        "mb_per_s": round(moved / seconds / 1e6, 3),
        "stopped": (str(failure) or type(failure).__name__) if failure is not None else stopped,
        "clipped": batch.job.outputs.format.report,
        "not_finite": batch.job.outputs.format.not_finite,
        "left_out": inputs.left_out,
        "left_out_names": inputs.left_out_names,
        "failures": [{"input": key, "reason": reason} for key, reason in batch.tally.failures],
    }
    path = folder / REPORT
    try:
        with whole_file(path) as file:
            file.write(f"{json.dumps(report, indent=2)}\n".encode())
    except OSError as error:  # the same report is printed, and a full disk has an error of its own
        print(f"{path} was not written: {error.strerror or error}", file=sys.stderr)
    print_result(_rows(report, folder), report, as_json=as_json)
    return report


def on_a_line(text: str) -> str:
    """Returns a text, such as a file's name, without what would break the line or steer the terminal."""
    return printable(text).replace("\n", "\\n")


def left_out_text(kinds: dict[str, int], names: dict[str, list[str]]) -> str:
    """Returns a line for each kind of what is left out, "3 .txt: a.txt, b.txt, c.txt"."""
    lines = []
    for kind, count in kinds.items():
        shown = names.get(kind, [])[:_MAX_NAMES]
        more = ", ..." if count > len(shown) else ""
        listed = f": {', '.join(map(on_a_line, shown))}{more}" if shown else ""
        lines.append(f"{count:,} {on_a_line(kind)}{listed}")
    return "\n".join(lines)


def _clipped_text(clipped: dict[str, Any] | None) -> str:
    if clipped is None:
        return ""
    low, high = f"{clipped['low']:.6g}", f"{clipped['high']:.6g}"
    outside = f"values outside --value-range, drawn black or white, in {clipped['pictures']:,} of the pictures"
    return f"{outside}: from {low} to {high}\n--value-range={low},{high} shows them all"


def _rows(report: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    parts = [f"{report['done']:,} done"]
    parts += [f"{report[name]:,} {text}" for name, text in _OTHERS.items() if report[name]]
    samples = f", of {report['samples']:,} samples" if report["samples"] != report["done"] else ""
    seconds = f"{report['seconds']:,.1f} s, {_speed_text(report['mb_per_s'] * 1e6)} in and out together"
    failures = [f"{on_a_line(failed['input'])}: {on_a_line(failed['reason'])}" for failed in report["failures"]]
    failed = first_lines(failures, f"more, in {folder / REPORT}", count=report["failed"])
    if failures and sys.stdout.isatty() and sys.stderr.isatty():
        failed = f"{report['failed']:,}, as told above and in {folder / REPORT}"
    advice = "--retry-failed tries what failed again" if report["failed"] else ""
    if report["left"]:
        advice = "--resume does the rest"
    return [
        ("items", f"{report['items']:,}: {', '.join(parts)}{samples}"),
        ("in", f"{bytes_text(report['input_bytes'])} of arrays"),
        ("out", f"{bytes_text(report['output_bytes'])} of arrays, {bytes_text(report['file_bytes'])} in files"),
        ("time", seconds),
        ("failed", failed),
        ("clipped", _clipped_text(report["clipped"])),
        ("not finite", f"drawn black, in {odd:,} of the pictures" if (odd := report["not_finite"]) else ""),
        ("left out", left_out_text(report["left_out"], report["left_out_names"])),
        ("written", str(folder)),
        ("next", advice),
    ]
