"""What is known of stored layers: of one without its weights, and of all together."""

from __future__ import annotations

from typing import NamedTuple

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import Shape

Reference = bytes | str
"""A stored layer's digest, or a name that leads to it."""


class LayerHead(NamedTuple):
    """What a layer's file says before the weights; the kernel's shape has four dimensions."""

    config: Conv2D
    kernel_shape: Shape

    @classmethod
    def of(cls, layer: Layer) -> LayerHead:
        """Returns the head of a layer with weights."""
        assert layer.kernel is not None  # noqa: S101 (the store takes no layer without)
        return cls(layer.config, layer.kernel.shape)


class StoredLayer(NamedTuple):
    """A stored layer without its weights: its digest, the names that lead to it, sorted, and its configuration."""

    digest: bytes
    names: tuple[str, ...]
    config: Conv2D
    kernel_shape: Shape


class DurableUsage(NamedTuple):
    """What was asked of a remote store since the start, and what is kept of it here."""

    is_reachable: bool
    requests: dict[tuple[str, str], int]  # by operation and result
    seconds: dict[str, float]  # by operation
    damaged: int  # objects that were not the layer, or name, that they should be
    cache_bytes: int
    cache_hits: int
    cache_misses: int


class StoreUsage(NamedTuple):
    """What the store holds, and has done since the start."""

    layers: int  # in memory, on disk, or in the bucket
    memory_bytes: int
    evictions: int  # layers that left the memory for want of room
    durable: DurableUsage | None = None  # of a bucket
