"""Which layers of a model a server is to compute, and why others stay where they are."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras

from convserve.display.units import flops_text
from convserve.errors import InvalidArgumentError, InvalidRequestError, short_repr
from convserve.keras.graph import arrays_of, is_model
from convserve.keras.layers.steps import at_height, convolution_kind, layers_of, step_of
from convserve.layers.keras_layers import CONVOLUTIONS, advice
from convserve.layers.plan import plan

Only = Collection[str] | Callable[[Any], Any] | int | None
"""Names of convolutions, a function of a layer, or the least floating-point operations for one sample."""


def refusals(only: Only, model: Any) -> Callable[[Any], str]:
    """Returns what says of one of Keras' convolutions, or one derived from it, why it stays local, or nothing.

    Raises InvalidRequestError for an `only` that chooses nothing, or names no convolution of the model.
    """
    is_number = isinstance(only, int) and not isinstance(only, bool) and only > 0
    is_names = isinstance(only, Collection) and not isinstance(only, str | bytes | dict)
    if not (only is None or is_number or is_names or (callable(only) and not isinstance(only, type))):
        expected = "names of layers, a function of a layer, or the least FLOPs for one sample, above 0"
        raise InvalidRequestError.for_field("only", expected, short_repr(only))
    if is_names:
        known = sorted({layer.name for layer in within(model) if convolution_kind(layer)})
        listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        for name in only:  # type: ignore[union-attr]
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"They are {listed}." if known else "It has none."
                raise InvalidRequestError.for_field("only", "names of convolutions", short_repr(name), hint)

    @functools.cache
    def refusal(layer: Any) -> str:
        kind = convolution_kind(layer)
        if kind not in CONVOLUTIONS:
            return advice(kind) or "No Conv2D computes it."
        if (step := step_of(layer)) is None:
            return f"It is a {type(layer).__name__}, which may compute something else than {kind}, or has more dtypes."
        try:
            layers = layers_of((step,), arrays_of(layer, step)) if layer.built else ()
        except InvalidArgumentError as error:
            return " ".join(str(error).split())
        if only is None:
            return ""
        if isinstance(only, int):
            shape = (layer.get_build_config() or {}).get("input_shape")
            if not layers or shape is None or None in shape[1:]:
                return "The size of its input is open, so its FLOPs are not known."
            flops = plan([each.config for each in layers], at_height((step,), (1, *shape[1:]))).flops
            return "" if flops >= only else f"It takes {flops_text(flops)} for one sample."
        is_chosen = only(layer) if callable(only) else layer.name in only
        return "" if is_chosen else "only= does not choose it."

    return refusal


def within(model: Any) -> Iterator[Any]:
    """Yields the layers of a model, of those in it, and of wrappers."""
    for layer in model.layers:
        inner = layer
        while isinstance(inner, keras.layers.Wrapper):
            yield inner
            inner = inner.layer
        yield from within(inner) if is_model(inner) else (inner,)
