"""A cache of layers whose weights the server initializes: those that come out the same each time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve_server.layer_store.cache import size_of

MAX_BYTES = 2**28


class InitializedLayerCache:
    """Initializes layers, and keeps those used last up to a number of bytes. Any thread may call its methods."""

    def __init__(self, initialize: Callable[[Conv2D, int], Layer], max_bytes: int = MAX_BYTES) -> None:
        """Starts empty.

        Args:
            initialize: Returns a configuration's layer for so many input channels, with every seed filled in.
            max_bytes: The most bytes that the cached layers' weights may take.
        """
        self._initialize, self._max_bytes = initialize, max_bytes
        self._lock = threading.Lock()
        self._layers: OrderedDict[tuple[Conv2D, int], Layer] = OrderedDict()
        self._bytes = 0

    def get(self, config: Conv2D, input_channels: int) -> Layer | None:
        """Returns a cached layer, or None."""
        with self._lock:
            layer = self._layers.get((config, input_channels))
            if layer is not None:
                self._layers.move_to_end((config, input_channels))
            return layer

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns a layer, whose weights are initialized now unless it is cached.

        Raises:
            ConvserveError: Whatever the initialization raises.
        """
        cached = self.get(config, input_channels)
        if cached is not None:
            return cached
        layer = self._initialize(config, input_channels)
        size = size_of(layer)
        # With another configuration a seed was chosen: the next call is to get other weights.
        if layer.config != config or size > self._max_bytes:
            return layer
        key = config, input_channels
        with self._lock:
            if key in self._layers:  # another thread was faster; calls that share one layer can be computed together
                return self._layers[key]
            while self._bytes + size > self._max_bytes:
                _, oldest = self._layers.popitem(last=False)
                self._bytes -= size_of(oldest)
            self._layers[key] = layer
            self._bytes += size
            return layer
