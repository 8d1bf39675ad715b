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


class StoreUsage(NamedTuple):
    """What the store holds, and has done since the start."""

    layers: int  # in memory or on disk
    memory_bytes: int
    evictions: int  # layers that left the memory for want of room
