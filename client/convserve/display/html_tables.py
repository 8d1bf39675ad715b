"""Small HTML tables, which notebooks show. All text is escaped: layers' names are other people's."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

Row = tuple[str, object]


def table(caption: str, rows: Iterable[Row]) -> str:
    """Returns a table of a label and a value per row."""
    cells = "".join(f"<tr><th>{_text(label)}</th><td>{_text(value)}</td></tr>" for label, value in rows)
    return f"<table><caption>{_text(caption)}</caption>{cells}</table>"


def grid(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table with a heading over each column."""
    headings = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{headings}</tr>{lines}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
