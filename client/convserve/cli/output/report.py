"""How results are shown: aligned lines for people, one JSON document for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_LINES = 20
"""So many of a list are shown, so that a million failures don't bury everything else."""
_WIDE = 1000  # characters of a line where there is no terminal: whoever reads a table then wants its rows whole


def print_result(shown: Iterable[tuple[str, str]] | str, document: dict[str, Any], *, as_json: bool) -> None:
    """Prints a result: rows or a text for people, or a document for programs."""
    if as_json:
        print_json(document)
    elif isinstance(shown, str):
        print(shown)
    else:
        print_rows(shown)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Prints a label and a text per line, the texts aligned; a text of several lines stays in its column."""
    listed = [(label, text) for label, text in rows if text]
    width = max((len(label) for label, _ in listed), default=0)
    for label, text in listed:
        indented = text.replace("\n", "\n" + " " * (width + 2))
        print(f"{label:<{width}}  {indented}")


def first_lines(lines: Sequence[str], further: str, *, count: int | None = None) -> str:
    """Returns the first 20 lines, and "and 7 more" for those that are left of so many, where `further` is "more"."""
    left = (len(lines) if count is None else count) - MAX_LINES
    return "\n".join([*lines[:MAX_LINES], *([f"and {left:,} {further}"] if left > 0 else [])])


def table_of(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", numbers: int = 0) -> Table:
    """Returns a table, of which the last `numbers` columns are aligned on the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", title_style="", box=None, pad_edge=False)
    table.padding, table.show_header = (0, 2, 0, 0), any(headings)
    for index, heading in enumerate(headings):
        right = index >= len(headings) - numbers
        table.add_column(heading, justify="right" if right else "left", header_style="", no_wrap=right)
    for row in rows:
        table.add_row(*map(Text, row))  # Text, because what has brackets would else be taken for markup
    return table


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", numbers: int = 0) -> None:
    """Prints a table as `table_of` makes it."""
    stdout_console().print(table_of(headings, rows, title=title, numbers=numbers))


def stdout_console() -> Console:
    """Returns stdout for rich."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def print_json(document: dict[str, Any]) -> None:
    """Prints a document as JSON, a line per key. NaN and infinities, which JSON has not, become null."""
    lines = (f"  {json.dumps(key)}: {json.dumps(_finite(value), allow_nan=False)}" for key, value in document.items())
    print("{\n" + ",\n".join(lines) + "\n}")


def shape_text(shape: Iterable[int], dtype: str) -> str:
    """Returns "(4, 600, 600, 3) float32"."""
    return f"{tuple(shape)} {dtype}"


def show_progress(text: str) -> None:
    """Shows on a terminal what is being done, in a line of stderr that the next text replaces; "" clears it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def show_count(name: str, number: int, count: int) -> None:
    """Shows on a terminal which of so many is worked on."""
    show_progress(f"{number}/{count} {name[:60]}")


def short_text(value: float | None) -> str:
    """Returns three digits, or all of those before the point; "" for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    return [_finite(member) for member in value] if isinstance(value, list | tuple) else value
