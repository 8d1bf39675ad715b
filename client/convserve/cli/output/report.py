"""How results are shown: aligned lines for people, one JSON document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Prints a label and a text per line, the texts aligned; a text of several lines stays in its column."""
    listed = [(label, text) for label, text in rows if text]
    width = max((len(label) for label, _ in listed), default=0)
    for label, text in listed:
        indented = text.replace("\n", "\n" + " " * (width + 2))
        print(f"{label:<{width}}  {indented}")


def print_json(document: dict[str, Any]) -> None:
    """Prints a document as JSON, a line per key. NaN and infinities, which JSON has not, become null."""
    lines = (f"  {json.dumps(key)}: {json.dumps(_finite(value), allow_nan=False)}" for key, value in document.items())
    print("{\n" + ",\n".join(lines) + "\n}")


def shape_text(shape: Iterable[int], dtype: str) -> str:
    """Returns "(4, 600, 600, 3) float32"."""
    return f"{tuple(shape)} {dtype}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
