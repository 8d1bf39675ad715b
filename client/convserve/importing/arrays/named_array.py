"""An array in a file, and what its name says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from convserve.tensors.codec import Array, Shape


class NamedArray(NamedTuple):
    """An array in a file, not read yet."""

    name: str
    shape: Shape
    dtype: str
    read: Callable[[], Array]


def split(name: str) -> tuple[str, str]:
    """Returns ("conv1", "kernel") for "conv1.kernel", "conv1/kernel" and TensorFlow's "conv1/kernel:0"."""
    plain = name.removesuffix(":0")
    cut = _last_cut(plain)
    return plain[: max(cut, 0)], plain[cut + 1 :]


def beside(layer: str, name: str) -> str:
    """Returns the name of what stands beside a layer: "layer1.0.bn1" for "layer1.0.conv1" and "bn1"."""
    return layer[: _last_cut(layer) + 1] + name


def listing(names: Sequence[str]) -> str:
    """Returns the first of some names for a text."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "none"


def _last_cut(name: str) -> int:
    return max(name.rfind("."), name.rfind("/"))
