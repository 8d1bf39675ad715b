"""What `convserve batch` says: its help, its progress, what it refuses before any server is asked."""

from __future__ import annotations

import errno
import io
import os
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from convserve import cli
from convserve.batch.counters import MAX_FAILURES, Counts, Pace, Tally
from convserve.cli.options.layer_reference import FILE
from convserve.cli.output import batch_report
from convserve.files.inputs import INPUT_SUFFIXES

NOBODY = "127.0.0.1:1"  # a port where nothing listens


def test_the_help_says_what_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(suffix in out for suffix in INPUT_SUFFIXES)
    assert "convserve batch photos --layer edges --output edges --resume" in out
    assert "exit status:" in out
    assert " ".join(FILE.split()[:3]) in " ".join(out.split())


@pytest.mark.parametrize("words", [[], ["x.npy"], ["x.npy", "--layer", "a"], ["x.npy", "-o", "y"]])
def test_a_layer_an_input_and_a_folder_are_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", *words]) == 2
    assert "Missing " in capsys.readouterr().err


def test_the_kernel_of_conv2d_is_a_layer_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", "x.npy", "--kernel", "sobel-x", "-o", "y"]) == 2
    assert "here a classic kernel is --layer sobel-x" in capsys.readouterr().err
    assert cli.main(["batch", "--help"]) == 0
    assert "--kernel NAME" not in capsys.readouterr().out


def test_inputs_are_looked_for_before_a_server_is_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["batch", str(tmp_path / "no"), "--layer", "a", "-o", str(tmp_path / "out"), "--target", NOBODY]
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("error: INPUT: Expected a file, a folder, or a pattern")
    assert not (tmp_path / "out").exists()


def test_without_a_server_nothing_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.npy").touch()
    command = ["batch", str(tmp_path), "--layer", "a", "-o", str(tmp_path / "out"), "--target", NOBODY]
    assert cli.main([*command, "--timeout", "0.3"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_pace_is_that_of_the_last_half_minute() -> None:
    pace = Pace()
    assert pace.see(0.0, Counts(100)) == (None, None)
    assert pace.see(10.0, Counts(100, done=10, input_bytes=10**7, output_bytes=10**7)) == (2e6, 90.0)
    # Items that were done before, or that wait in parts, are no work that was done now.
    assert pace.see(20.0, Counts(100, done=20, skipped=40, input_bytes=4 * 10**7)) == (2e6, 40.0)
    pace.see(50.0, Counts(100, done=20, skipped=40, input_bytes=4 * 10**7))
    assert pace.see(60.0, Counts(100, done=20, skipped=40, input_bytes=4 * 10**7)) == (0.0, None)


def test_a_part_of_an_item_counts_as_one() -> None:
    pace = Pace()
    pace.see(0.0, Counts(1))
    assert pace.see(10.0, Counts(1, parts=0.25))[1] == 30.0


def test_what_rounding_leaves_is_no_progress() -> None:
    pace = Pace()
    pace.see(0.0, Counts(3, parts=1 - 2**-53))
    assert pace.see(10.0, Counts(3, done=1))[1] is None


def test_a_tally_keeps_the_reasons_of_some_failures_and_the_number_of_all() -> None:
    tally = Tally(5000)
    for number in range(2000):
        tally.add_failure(str(number), "why")
    assert (tally.counts.failed, tally.counts.left, len(tally.failures)) == (2000, 3000, MAX_FAILURES)


def test_a_line_for_a_log() -> None:
    counts = Counts(10_000, done=3_000, skipped=510, failed=2)
    assert batch_report.line_of(counts, None, None) == "3,512 of 10,000 items (35%), 2 failed"
    assert batch_report.line_of(counts, 41.23e6, 130.2) == (
        "3,512 of 10,000 items (35%), 41.2 MB/s, 0:02:10 left, 2 failed"
    )


def test_what_is_left_is_never_rounded_away() -> None:
    assert batch_report.percent_text(Counts(1, parts=0.999)) == "99%"
    assert batch_report.percent_text(Counts(3, done=1, skipped=1, failed=1)) == "100%"


def test_the_bar_fits_a_terminal_and_shows_all() -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    console.print(batch_report.bar_of(Counts(10_000, done=3_500, failed=2), 41.23e6, 130.2))
    (line,) = text.getvalue().splitlines()
    assert len(line) <= 80
    assert line.startswith("3,502 of 10,000  ━━━")
    assert line.rstrip().endswith("35%  41.2 MB/s  0:02:10 left  2 failed")


def test_a_narrow_terminal_has_the_same_in_words() -> None:
    text = io.StringIO()
    console = Console(file=text, width=40, force_terminal=True, color_system=None)
    with closing(batch_report.Progress(console=console)) as bar:
        tally = Tally(10_000)
        tally.add(done=3_500)
        bar.watch(tally)
    assert "3,500 of 10,000 items (35%)" in text.getvalue()
    assert "…" not in text.getvalue()


def test_failures_are_told_until_there_are_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(batch_report.Progress(quiet=True)) as progress:
        for number in range(1000):
            progress.show_failure(f"{number}.npz:a", "why")  # no :a: of rich's
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "failed: 0.npz:a: why"
    assert lines[-1] == "failed: further ones are in the report"
    assert len(lines) == 21


class Gone(io.StringIO):
    """A terminal that has gone, or a pipe that nobody reads."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:  # noqa: ARG002
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_that_nobody_reads_ends_nothing(number: int, is_terminal: bool) -> None:
    console = Console(file=Gone(number), force_terminal=is_terminal)
    with closing(batch_report.Progress(console=console)) as progress:
        progress.watch(Tally(1))
        progress.show_failure("x.npy", "no")
