"""What a model's convolutions cost between here and a server: calls and bytes, one by one and several in one call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from convserve.display import html_tables
from convserve.display.units import bytes_text, flops_text
from convserve.errors import InvalidRequestError, short_repr
from convserve.keras.choice import Only, refusals
from convserve.keras.graph import arrays_of, check_model, is_model, runs_of, shared_by_models
from convserve.keras.layers.steps import at_height, convolution_kind, layers_of, step_of
from convserve.keras.swap import without_remote
from convserve.layers.plan import plan as planned
from convserve.tensors.codec import FLOAT_DTYPES, Shape, itemsize


@dataclass(frozen=True)
class PlannedCall:
    """A call to the server, as often as one forward pass makes it."""

    layers: tuple[str, ...]
    """The names of the model's layers that it computes."""
    input_shape: Shape
    output_shape: Shape
    input_bytes: int
    """Bytes of what is sent, without the weights, which the server gets once."""
    output_bytes: int
    flops: int
    """Floating-point operations on the server."""
    times: int = 1
    """How often it is made: within TimeDistributed once for each step."""


@dataclass(frozen=True)
class Traffic:
    """The calls of one forward pass, in order; the other attributes are sums over them."""

    calls: tuple[PlannedCall, ...]

    @property
    def count(self) -> int:
        """The number of calls."""
        return sum(call.times for call in self.calls)

    @property
    def input_bytes(self) -> int:
        """Bytes that are sent."""
        return sum(call.times * call.input_bytes for call in self.calls)

    @property
    def output_bytes(self) -> int:
        """Bytes that are received."""
        return sum(call.times * call.output_bytes for call in self.calls)

    @property
    def flops(self) -> int:
        """Floating-point operations on the server."""
        return sum(call.times * call.flops for call in self.calls)

    def row(self) -> tuple[str, ...]:
        """Returns the sums as texts."""
        return f"{self.count:,}", bytes_text(self.input_bytes), bytes_text(self.output_bytes), flops_text(self.flops)


@dataclass(frozen=True, repr=False)
class ModelPlan:
    """What one forward pass of a model costs once its convolutions are remote."""

    separate: Traffic
    """With `to_remote(model)`."""
    fused: Traffic
    """With `to_remote(model, fuse=True)`."""

    _COLUMNS = ("", "calls", "sent", "received", "work")

    def _rows(self) -> list[tuple[str, ...]]:
        return [("to_remote(model)", *self.separate.row()), ("to_remote(model, fuse=True)", *self.fused.row())]

    def __repr__(self) -> str:
        """Returns a table of both."""
        rows = [self._COLUMNS, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])]
        return "\n".join("  ".join(aligned).format(*row) for row in rows)

    def _repr_html_(self) -> str:
        return html_tables.grid(self._COLUMNS, self._rows())


def plan(model: Any, input_shape: Any = None, *, only: Only = None) -> ModelPlan:
    """Returns what one forward pass would cost once a model's convolutions were remote. No server is asked.

    Args:
        model: A built Sequential or Functional model; of one with remote layers, what `to_local` returns.
        input_shape: The shape of the input with its batch axis; of several inputs a list, or a dictionary by their
            names. None: one sample of the model's own shape.
        only: As of `to_remote`.

    Raises:
        InvalidRequestError: If the model is of another kind or not built, the shape is none of its, or `only` names no
            convolution of it.
    """
    check_model(model)
    if not model.built:
        raise InvalidRequestError.for_field("model", "a built model: call it once", short_repr(model))
    model = without_remote(model)
    walk = _Walk(refusals(only, model), shared_by_models(model))
    walk.model(model, _inputs(model, input_shape), 1)
    return ModelPlan(Traffic(walk.calls(fused=False)), Traffic(walk.calls(fused=True)))


def _inputs(model: Any, input_shape: Any) -> list[Any]:
    own = model.inputs
    if input_shape is None:
        shapes: Sequence[Any] = [(1, *tensor.shape[1:]) for tensor in own]
    elif isinstance(input_shape, Mapping):
        shapes = [input_shape.get(tensor.name) for tensor in own]
    else:
        is_list = _is_shapes(input_shape) or (len(own) > 1 and isinstance(input_shape, Sequence))
        shapes = list(input_shape) if is_list else [input_shape]
    expected = ", ".join(f"{tuple(tensor.shape)}" for tensor in own)
    if len(shapes) != len(own) or not all(map(_fits, shapes, own)):
        received = short_repr(shapes[0] if len(shapes) == 1 else shapes)
        raise InvalidRequestError.for_field("input_shape", f"{expected} without anything open", received)
    return [keras.KerasTensor(tuple(shape), dtype=tensor.dtype) for shape, tensor in zip(shapes, own, strict=True)]


def _is_shapes(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(each, Sequence) for each in value)


def _fits(shape: Any, tensor: Any) -> bool:
    if not isinstance(shape, Sequence) or len(shape) != len(tensor.shape):
        return False
    pairs = zip(shape, tensor.shape, strict=True)
    return all(isinstance(size, int) and size > 0 and own in (None, size) for size, own in pairs)


class _Walk:
    """Goes through a model's graph with shapes alone, and notes what its layers get."""

    def __init__(self, refusal: Callable[[Any], str], shared: set[int]) -> None:
        self._refusal, self._shared = refusal, shared
        self._seen: list[tuple[Any, Any, int]] = []  # of each call: the layer, what it gets, and how often
        self._runs: dict[int, tuple[Any, ...]] = {}

    def model(self, model: Any, inputs: Any, times: int) -> Any:
        """Returns what a model returns for tensors that have a shape alone."""
        for run in runs_of(model, self._refusal, self._shared)[0]:
            self._runs |= dict.fromkeys(map(id, run), run)
        if isinstance(model, keras.Sequential):
            (x,) = keras.tree.flatten(inputs)
            for layer in model.layers:
                x = self._call(times, layer, x)
            return x
        call = functools.partial(self._call, times)
        return model._run_through_graph(inputs, operation_fn=lambda layer: layer, call_fn=call)

    def _is_chosen(self, layer: Any) -> bool:
        return bool(convolution_kind(layer)) and not self._refusal(layer)

    def _call(self, times: int, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if is_model(layer):
            return self.model(layer, args[0], times)
        if isinstance(layer, keras.layers.TimeDistributed):
            batch, steps, *rest = args[0].shape
            self._call(times * steps, layer.layer, keras.KerasTensor((batch, *rest), dtype=args[0].dtype))
        elif isinstance(layer, keras.layers.Wrapper):
            self._call(times, layer.layer, *args)
        elif isinstance(layer, keras.Layer) and (self._is_chosen(layer) or id(layer) in self._runs):
            self._seen.append((layer, args[0], times))
        return layer.compute_output_spec(*args, **kwargs)

    def calls(self, *, fused: bool) -> tuple[PlannedCall, ...]:
        """Returns a call for each run of layers, or for each convolution."""
        found, begun = [], {}
        for layer, x, times in self._seen:
            run = self._runs.get(id(layer), (layer,)) if fused else (layer,)
            if layer is run[0]:
                begun[id(run[0])] = x
            if layer is run[-1] and (fused or self._is_chosen(layer)):
                found.append(_planned(run, begun[id(run[0])], x, times))
        return tuple(found)


def _planned(layers: tuple[Any, ...], first: Any, last: Any, times: int) -> PlannedCall:
    """Returns the call of layers of which the first and the last get tensors like these."""
    steps = tuple(step for step in map(step_of, layers) if step is not None)
    arrays = [array for layer, step in zip(layers, steps, strict=True) for array in arrays_of(layer, step)]
    shape, output = tuple(first.shape), tuple(layers[-1].compute_output_shape(last.shape))
    configs = [layer.config for layer in layers_of(steps, arrays)]
    dtype = steps[0].compute_dtype if first.dtype in FLOAT_DTYPES else first.dtype  # Keras casts no others
    return PlannedCall(
        layers=tuple(layer.name for layer in layers),
        input_shape=shape,
        output_shape=output,
        input_bytes=math.prod(shape) * itemsize(dtype),
        output_bytes=math.prod(output) * itemsize(steps[-1].compute_dtype),
        flops=planned(configs, at_height(steps, shape)).flops,
        times=times,
    )
