"""A cache of layers whose weights the server initializes: those that come out the same each time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve_server.layer_store.cache import LayerCache, size_of

MAX_BYTES = 2**28


class InitializedLayerCache:
    """Initializes layers, and keeps those used last up to a number of bytes. Any thread may call its methods."""

    def __init__(self, initialize: Callable[[Conv2D, int], Layer], max_bytes: int = MAX_BYTES) -> None:
        """Starts empty; `initialize` returns a layer for so many input channels, with every seed filled in."""
        self._initialize = initialize
        self._lock = threading.Lock()
        self._layers: LayerCache[tuple[Conv2D, int]] = LayerCache(max_bytes)

    def get(self, config: Conv2D, input_channels: int) -> Layer | None:
        """Returns a cached layer, or None."""
        with self._lock:
            return self._layers.use((config, input_channels))

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns a layer, whose weights are initialized now unless it is cached."""
        layer = self.get(config, input_channels)
        if layer is not None:
            return layer
        layer, key = self._initialize(config, input_channels), (config, input_channels)
        # With another configuration a seed was chosen: the next call is to get other weights.
        if layer.config != config or size_of(layer) > self._layers.budget:
            return layer
        with self._lock:
            faster = self._layers.get(key)  # another thread's: calls that share one layer can be computed together
            if faster is not None:
                return faster
            self._layers.add(key, layer)
            self._layers.evict()
            return layer
