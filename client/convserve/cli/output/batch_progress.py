"""How far a batch is: a bar on a terminal, else a line from time to time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from convserve.batch.counters import Counts, Pace, Tally

if TYPE_CHECKING:
    from rich.console import Console

_LINE_S = 10.0
_NARROW = 72  # columns, below which a bar would leave no room for what stands beside it
_MAX_TOLD = 20  # failures, so that a million of them don't bury everything else


class Progress(Protocol):
    """Shows how far a run is."""

    def watch(self, tally: Tally) -> None:
        """Begins to show these counts."""

    def tell(self, text: str) -> None:
        """Shows a line of text."""

    def tell_failure(self, key: str, reason: str) -> None:
        """Shows that an item failed; any thread may call it."""


@contextmanager
def progress_of(*, quiet: bool) -> Iterator[Progress]:
    """Yields what shows the progress on stderr: a bar where that is a terminal, else lines."""
    if quiet:
        yield _Told()
        return
    with _Bar() if sys.stderr.isatty() else _Lines() as shown:
        yield shown


class _Told:
    """Tells what is to be told, and no more."""

    def __init__(self) -> None:
        self._failures = 0
        self._lock = threading.Lock()

    def watch(self, tally: Tally) -> None:
        pass

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def tell_failure(self, key: str, reason: str) -> None:
        with self._lock:
            self._failures += 1
            number = self._failures
        if number <= _MAX_TOLD:
            self.tell(f"failed: {key}: {reason}")
        elif number == _MAX_TOLD + 1:
            self.tell("failed: further ones are in the report")


class _Lines(_Told):
    """A line every ten seconds, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, tally: Tally) -> None:
        self._thread = threading.Thread(target=self._repeat, args=(tally,), daemon=True)
        self._thread.start()

    def _repeat(self, tally: Tally) -> None:
        pace = Pace()
        pace.see(time.monotonic(), tally.counts)
        while not self._over.wait(_LINE_S):
            self.tell(line_of(tally.counts, *pace.see(time.monotonic(), tally.counts)))

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


def line_of(counts: Counts, bytes_per_s: float | None, left_s: float | None) -> str:
    """Returns "3,512 of 10,000 items (35%), 41.2 MB/s, 0:02:10 left, 2 failed"."""
    parts = [f"{items_text(counts)} items ({percent_text(counts)})", *speed_texts(bytes_per_s, left_s)]
    return ", ".join([*parts, *([f"{counts.failed:,} failed"] if counts.failed else [])])


def percent_text(counts: Counts) -> str:
    """Returns "35%", of an array that comes in parts too; 100% is all of it."""
    return f"{int(100 * (counts.items - counts.left + counts.parts) / max(counts.items, 1) + 1e-9)}%"


def items_text(counts: Counts) -> str:
    """Returns "3,512 of 10,000"."""
    return f"{counts.items - counts.left:,} of {counts.items:,}"


def speed_text(bytes_per_s: float) -> str:
    """Returns "41.2 MB/s"; what is slow has decimals, what is fast has none."""
    amount = bytes_per_s / 1e6
    return f"{amount:,.0f} MB/s" if amount >= 100 else f"{amount:.3g} MB/s"


def speed_texts(bytes_per_s: float | None, left_s: float | None) -> list[str]:
    """Returns "41.2 MB/s" and "0:02:10 left", as far as they are known."""
    speed = [] if bytes_per_s is None else [speed_text(bytes_per_s)]
    if left_s is None:
        return speed
    minutes, seconds = divmod(round(left_s), 60)
    return [*speed, f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"]


class _Bar(_Told):
    """A bar that is drawn again four times a second, below what is told."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._console = console or Console(stderr=True)
        self._tally = Tally(0)
        self._pace = Pace()
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)

    def watch(self, tally: Tally) -> None:
        self._tally, self._pace = tally, Pace()

    def tell(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> Any:
        counts = self._tally.counts
        show = line_of if self._console.width < _NARROW else bar_of
        return show(counts, *self._pace.see(time.monotonic(), counts))

    def __enter__(self) -> _Bar:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def bar_of(counts: Counts, bytes_per_s: float | None, left_s: float | None) -> Any:
    """Returns what rich draws: a bar with the items, the speed, the time that is left and the failures."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    done = counts.items - counts.left + counts.parts
    table = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, 1, None, None, None, None):
        table.add_column(ratio=ratio, no_wrap=True)
    speed, left = [*speed_texts(bytes_per_s, left_s), "", ""][:2]
    failed = f"[red]{counts.failed:,} failed[/]" if counts.failed else "0 failed"
    bar = ProgressBar(max(counts.items, 1), done, complete_style="cyan", finished_style="green")
    table.add_row(items_text(counts), bar, percent_text(counts), speed, left, failed)
    return table
