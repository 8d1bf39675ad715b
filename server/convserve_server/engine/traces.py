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
from convserve.layers.plan import channel_axis
from convserve.tensors.codec import Shape
from convserve_server.engine.forward import Forward

_MAX_TRACES = 1000
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
    lock: threading.Lock = field(default_factory=threading.Lock)
    forward: Forward | None = None


class Traces:
    """Forward passes by geometry and dtypes. Its methods may be called from any thread."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._lock = threading.Lock()
        self.traces: OrderedDict[Hashable, _Trace] = OrderedDict()
        self._numbers = itertools.count()
        # Which shapes each trace, by its number, was asked for.
        self.shapes: OrderedDict[tuple[int, Shape], None] = OrderedDict()
        self._geometries: WeakKeyDictionary[Layer, Hashable] = WeakKeyDictionary()

    def find(self, layers: Sequence[Layer], shape: Shape, input_dtype: str, output_dtype: str) -> tuple[Forward, bool]:
        """Returns the forward pass of a chain, and whether it had been asked for with this shape before."""
        with self._lock:
            channels = shape[channel_axis(layers[0].config)]
            key = (tuple(self._geometry(layer) for layer in layers), channels, input_dtype, output_dtype)
            trace = self.traces.get(key)
            if trace is None:
                trace = self.traces[key] = _Trace(next(self._numbers))
            self.traces.move_to_end(key)
            warm = (trace.number, shape) in self.shapes
            self.shapes[trace.number, shape] = None
            if len(self.traces) > _MAX_TRACES:
                self.traces.popitem(last=False)
            if len(self.shapes) > _MAX_SHAPES:
                self.shapes.popitem(last=False)
        with trace.lock:
            if trace.forward is None:
                chain = [layer.config for layer in layers]
                trace.forward = Forward(chain, channels, input_dtype, output_dtype, self._on_gpu)
            return trace.forward, warm

    def _geometry(self, layer: Layer) -> Hashable:
        geometry = self._geometries.get(layer)
        if geometry is None:
            geometry = self._geometries[layer] = tuple(getattr(layer.config, name) for name in _TRACED_FIELDS)
        return geometry
