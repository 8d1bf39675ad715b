"""Small HTML tables, which notebooks show. All text is escaped: names are other people's."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """Returns a table of labels and values."""
    cells = "".join(f"<tr><th>{_text(label)}</th><td>{_text(value)}</td></tr>" for label, value in rows)
    return f"<table><caption>{_text(caption)}</caption>{cells}</table>"


def grid(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Returns a table of columns."""
    first = "".join(f"<th>{_text(name)}</th>" for name in head)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{first}</tr>{rows}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
