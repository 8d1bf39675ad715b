"""The traced forward passes that are kept: one for all layers of one geometry, and for all sizes of image."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import Shape
from convserve_server.engine.forward import Forward
from convserve_server.engine.tensors import free_functions

_MAX_LAYERS = 1000  # of all traces together: a layer takes about 60 kB
_DROPPED_LAYERS = 100  # whose memory is freed at once, as it costs what is kept a new start
_MAX_SHAPES = 100_000
# What a trace depends on. Initializers and constraints act elsewhere, and the rest are labels.
_TRACED_FIELDS = tuple(
    parameter.name
    for parameter in dataclasses.fields(Conv2D)
    if parameter.name not in ("name", "input_shape") and not parameter.name.endswith(("_initializer", "_constraint"))
)


@dataclass
class _Trace:
    """A forward pass that is traced when it is first asked for, by one thread; others wait for it."""

    number: int
    layers: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    forward: Forward | None = None


class Traces:
    """Forward passes by geometry and dtypes. Its methods may be called from any thread."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._lock = threading.Lock()
        self.traces: OrderedDict[Hashable, _Trace] = OrderedDict()
        self._layers = 0  # of the traces that are kept
        self._dropped_layers = 0  # of those that were dropped since the memory of such was freed
        self._numbers = itertools.count()
        # Which shapes each trace, by its number, was asked for.
        self.shapes: OrderedDict[tuple[int, Shape], None] = OrderedDict()
        self._geometries: WeakKeyDictionary[Layer, Hashable] = WeakKeyDictionary()

    def find(self, layers: Sequence[Layer], shape: Shape, input_dtype: str, output_dtype: str) -> tuple[Forward, bool]:
        """Returns the forward pass of a chain, and whether it had been asked for with this shape before."""
        with self._lock:
            key = (tuple(self._geometry(layer) for layer in layers), input_dtype, output_dtype)
            trace = self.traces.get(key)
            if trace is None:
                trace = self.traces[key] = _Trace(next(self._numbers), len(layers))
                self._layers += len(layers)
            self.traces.move_to_end(key)
            warm = (trace.number, shape) in self.shapes
            self.shapes[trace.number, shape] = None
            if len(self.shapes) > _MAX_SHAPES:
                self.shapes.popitem(last=False)
            frees = self._drop_oldest()
        if frees:
            free_functions()
        with trace.lock:
            if trace.forward is None:
                chain = [layer.config for layer in layers]
                channels = [_kernel_channels(layer) * layer.config.groups for layer in layers]
                trace.forward = Forward(chain, channels, input_dtype, output_dtype, self._on_gpu)
            return trace.forward, warm

    def _drop_oldest(self) -> bool:
        """Drops what is too much, and returns whether it is time to free the memory of all that was dropped."""
        while self._layers > _MAX_LAYERS and len(self.traces) > 1:
            _, oldest = self.traces.popitem(last=False)
            self._layers -= oldest.layers
            self._dropped_layers += oldest.layers
        frees = self._dropped_layers >= _DROPPED_LAYERS
        if frees:
            self._dropped_layers = 0
        return frees

    def _geometry(self, layer: Layer) -> Hashable:
        geometry = self._geometries.get(layer)
        if geometry is None:
            fields = (getattr(layer.config, name) for name in _TRACED_FIELDS)
            geometry = self._geometries[layer] = (_kernel_channels(layer), *fields)
        return geometry


def _kernel_channels(layer: Layer) -> int:
    """Returns the input channels of a group."""
    return int(layer.arrays["kernel"].shape[2])
