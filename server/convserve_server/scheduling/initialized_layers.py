"""Layers whose weights the server draws: those that always come out the same are kept for the next call."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer

MAX_BYTES = 2**28


class InitializedLayerCache:
    """Draws layers; those used last are kept up to a number of bytes. Its methods may be called from any thread."""

    def __init__(self, initialize: Callable[[Conv2D, int], Layer], most_bytes: int = MAX_BYTES) -> None:
        """Starts empty.

        Args:
            initialize: Returns a configuration's layer for so many input channels, with every seed filled in.
            most_bytes: The most that the kept layers' weights may take.
        """
        self._initialize = initialize
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Conv2D, int], Layer] = OrderedDict()
        self._bytes = 0

    def known(self, config: Conv2D, input_channels: int) -> Layer | None:
        """Returns a layer that is kept, or None."""
        with self._lock:
            found = self._kept.get((config, input_channels))
            if found is not None:
                self._kept.move_to_end((config, input_channels))
            return found

    def initialize(self, config: Conv2D, input_channels: int) -> Layer:
        """Returns a layer, drawn now unless it is kept.

        Raises:
            ConvserveError: Whatever drawing raises.
        """
        found = self.known(config, input_channels)
        if found is not None:
            return found
        layer = self._initialize(config, input_channels)
        if layer.config != config:  # a seed was chosen: the next call is to get other weights
            return layer
        with self._lock:
            return self._keep((config, input_channels), layer)

    def _keep(self, key: tuple[Conv2D, int], layer: Layer) -> Layer:
        if key in self._kept:  # another thread was faster; calls that share one layer can be computed together
            return self._kept[key]
        size = _size(layer)
        if size > self._most_bytes:
            return layer
        while self._bytes + size > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)
        self._kept[key] = layer
        self._bytes += size
        return layer


def _size(layer: Layer) -> int:
    return sum(weight.nbytes for weight in (layer.kernel, layer.bias) if weight is not None) + 4096
