"""Layers in memory, within a budget, ready to be computed with. Its users hold a lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

from convserve.layers.layer import Layer
from convserve_server.memory.aligned import aligned_constant

# Beside the weights' own bytes, what a layer's objects take.
_OVERHEAD_BYTES = 4096


Key = TypeVar("Key", bound=Hashable)


class LayerCache(OrderedDict[Key, Layer]):
    """Layers by a key, in the order of their use."""

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.budget = budget
        self.size = self.evictions = 0

    def use(self, key: Key) -> Layer | None:
        """Returns a layer, which becomes the one used last, or None."""
        layer = self.get(key)
        if layer is not None:
            self.move_to_end(key)
        return layer

    def add(self, key: Key, layer: Layer) -> None:
        """Adds a layer that is not there, as the one used last; `evict` makes room for it."""
        self[key] = layer
        self.size += size_of(layer)

    def remove(self, key: Key) -> None:
        """Removes a layer if it is there."""
        if (layer := self.pop(key, None)) is not None:
            self.size -= size_of(layer)

    def evict(self, keeps: Callable[[Key], bool] = lambda _: False) -> None:
        """Removes the layers that were used longest ago, without those that are to be kept, until the budget holds."""
        for oldest in list(self) if self.size > self.budget else ():
            if not keeps(oldest):
                self.remove(oldest)
                self.evictions += 1
                if self.size <= self.budget:
                    break


def size_of(layer: Layer) -> int:
    """Returns the bytes that a layer takes in memory."""
    return sum(array.nbytes for array in layer.arrays.values()) + _OVERHEAD_BYTES


def at_rest(layer: Layer) -> Layer:
    """Returns a layer whose weights are aligned, for the engine computes on them, and read-only: their digest lasts."""
    kernel, bias = (None if weight is None else aligned_constant(weight) for weight in (layer.kernel, layer.bias))
    return layer if kernel is layer.kernel and bias is layer.bias else Layer(layer.config, kernel, bias)
