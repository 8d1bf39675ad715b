"""What `map` has on its way: an input, those of one shape and dtype, and several of them in one call."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from convserve.errors import ConvserveError
from convserve.tensors.codec import Array

MANY_BYTES = 2**22
"""The most bytes of inputs, or of outputs, in a call of many: what it costs beside them is little then."""
MAX_TOGETHER = 1024
"""The most items of a call."""
FEW, FEW_BYTES = 8, 2**24
"""So few items may have more bytes: their outputs need no copies, as one that is kept keeps few others."""
_ITEM_BYTES = 2**10  # what an item takes beside its arrays, so that millions of tiny ones are bounded too


@dataclass(slots=True, eq=False)
class Item:
    """One input on its way.

    Attributes:
        number: Its place among the inputs, from 0.
        array: The input with a batch axis; None once there is an outcome.
        is_sample: Whether it came, and its output goes, without a batch axis.
        input_bytes: Bytes of the input.
        output_bytes: Bytes of the output that it will have.
        group: What it has in common with those that can go in one call with it.
        outcome: The output, or the error in its place.
    """

    number: int
    array: Array | None = None
    is_sample: bool = False
    input_bytes: int = 0
    output_bytes: int = 0
    group: Hashable = None
    outcome: Array | ConvserveError | None = None

    @property
    def bytes_in_flight(self) -> int:
        """What it counts for at this moment."""
        return _ITEM_BYTES + self.input_bytes + self.output_bytes

    @property
    def call_bytes(self) -> int:
        """What it counts for in a call: its input or its output, whichever is more, as for all of its group."""
        return max(self.input_bytes, self.output_bytes)

    def input(self) -> Array:
        """Returns the input of an item that has no outcome yet."""
        assert self.array is not None  # noqa: S101
        return self.array

    def finish(self, outcome: Array | ConvserveError) -> None:
        """Notes its outcome, and drops the input."""
        if isinstance(outcome, ConvserveError):
            self.output_bytes = 0
        elif self.is_sample:
            outcome = outcome[0]
        self.array, self.input_bytes, self.outcome = None, 0, outcome


def split(output: Array, items: list[Item]) -> list[Array]:
    """Returns each item's part of a call's output; of many as copies, else one that is kept would keep all."""
    parts = np.split(output, np.cumsum([len(item.input()) for item in items])[:-1])
    return parts if len(parts) <= FEW else [part.copy() for part in parts]


class Group:
    """Items of one shape and dtype.

    Attributes:
        waiting: Those that are not sent.
        calls: How many calls with some of them are under way.
    """

    def __init__(self) -> None:
        self.waiting: deque[Item] = deque()
        self.calls = 0
        self._bytes = 0  # of those that wait

    def add(self, item: Item) -> None:
        """Lets an item wait behind the others."""
        self.waiting.append(item)
        self._bytes += item.call_bytes

    def has_whole_call(self) -> bool:
        """Whether so many wait that a further one like the last would not go in one call with all of them."""
        return not _go_together(len(self.waiting) + 1, self._bytes + self.waiting[-1].call_bytes)

    def take(self) -> list[Item]:
        """Returns the items of its next call, the first of those that wait."""
        items: list[Item] = []
        size = 0
        while self.waiting:
            size += self.waiting[0].call_bytes
            if items and not _go_together(len(items) + 1, size):
                break
            items.append(self.waiting.popleft())
            self._bytes -= items[-1].call_bytes
        self.calls += 1
        return items


def fewest_calls(count: int, size: int) -> int:
    """Returns the fewest calls that items of so many bytes each, as `Item.call_bytes` counts them, go in."""
    few, many = min(FEW, FEW_BYTES // max(size, 1)), min(MAX_TOGETHER, MANY_BYTES // max(size, 1))
    return math.ceil(count / max(1, few, many))


def _go_together(items: int, size: int) -> bool:
    return items <= MAX_TOGETHER and size <= (FEW_BYTES if items <= FEW else MANY_BYTES)
