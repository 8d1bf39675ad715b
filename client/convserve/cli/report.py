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


def bytes_text(amount: int) -> str:
    """Returns "368.6 MB" for 368640000; decimal units, as disks and networks count."""
    return _scaled(amount, ("bytes", "kB", "MB", "GB", "TB", "PB"))


def flops_text(amount: int) -> str:
    """Returns "4.953 GFLOP" for 4953139200."""
    return _scaled(amount, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def duration_text(microseconds: float) -> str:
    """Returns "2.31 s", "12.3 ms" or "140 us"."""
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    if microseconds >= 1e3:
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds:.0f} us"


def shape_text(shape: Iterable[int], dtype: str) -> str:
    """Returns "(4, 600, 600, 3) float32"."""
    return f"{tuple(shape)} {dtype}"


def _scaled(amount: int, units: tuple[str, ...]) -> str:
    scale = 0
    while scale < len(units) - 1 and amount >= 1000 ** (scale + 1):
        scale += 1
    return f"{amount} {units[0]}" if scale == 0 else f"{amount / 1000**scale:.4g} {units[scale]}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
