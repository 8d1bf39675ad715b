"""Amounts as people read them: bytes, operations and times in units that fit, decimal as disks and networks count."""

from __future__ import annotations


def bytes_text(amount: int) -> str:
    """Returns "368.6 MB" for 368640000."""
    return _scaled(amount, ("bytes", "kB", "MB", "GB", "TB", "PB"))


def flops_text(amount: int) -> str:
    """Returns "4.953 GFLOP" for 4953139200."""
    return _scaled(amount, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def counted(number: int, what: str) -> str:
    """Returns "1 layer" and "1,200 layers"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration_text(microseconds: float) -> str:
    """Returns "2.31 s", "12.3 ms" or "140 us"."""
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    if microseconds >= 1e3:
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds:.0f} us"


def _scaled(amount: int, units: tuple[str, ...]) -> str:
    scale = next((scale for scale in range(len(units) - 1) if amount < 1000 ** (scale + 1)), len(units) - 1)
    return f"{amount} {units[0]}" if scale == 0 else f"{amount / 1000**scale:.4g} {units[scale]}"
