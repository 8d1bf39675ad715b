"""The arguments of a forward pass, checked: layers, dtype, timeout, and an array of the caller's own for the output."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from convserve.errors import InvalidRequestError, InvalidTensorError, short_repr
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import Plan
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors.codec import FLOAT_DTYPES, Array, check_unmasked, numpy_dtype, standard_dtype

LONGEST_S = 365 * 86400.0
"""The longest timeout."""

OneLayer = Layer | Conv2D | StoredLayerBase
Layers = OneLayer | Sequence[OneLayer]
"""What `convolve` takes: one layer or several, each stored, with weights, or as a configuration alone."""


def layers_of(layers: Layers) -> list[Layer | StoredLayerBase]:
    """Returns the layers of a call as a list; raises InvalidRequestError if there is none, or something else."""
    listed = list(layers) if isinstance(layers, Sequence) else [layers]
    if not listed or not all(isinstance(layer, OneLayer) for layer in listed):
        expected = "a Layer, Conv2D or stored layer, or a list of at least one"
        names = [layer for layer in [layers, *listed] if isinstance(layer, str)]
        hint = f"client.layer({short_repr(names[0])}) is the stored layer of this name." if names else ""
        raise InvalidRequestError.for_field("layers", expected, short_repr(layers), hint)
    return [Layer(layer) if isinstance(layer, Conv2D) else layer for layer in listed]


def output_name(output_dtype: Any) -> str | None:
    """Returns the name of the floating-point dtype that an output is asked for in; None for that of the last layer."""
    return None if output_dtype is None else standard_dtype(output_dtype, "output_dtype", FLOAT_DTYPES)


def is_number(value: object) -> bool:
    """Returns whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def checked_timeout(timeout: float | None) -> float:
    """Returns a timeout in seconds, at most `LONGEST_S`; raises InvalidRequestError if it is no number above 0.

    None, infinity and more seconds than gRPC can count are for as long as it takes, which no clock tells from a year.
    """
    if timeout is None:
        return LONGEST_S
    if not (is_number(timeout) and timeout > 0):
        expected = "a number of seconds above 0, or None for as long as it takes"
        raise InvalidRequestError.for_field("timeout", expected, f"timeout={short_repr(timeout)}")
    return float(min(timeout, LONGEST_S))


def check_output(out: Any, plan: Plan, sent: Iterable[Array | None]) -> None:
    """Raises InvalidTensorError unless `out` can take the planned output while the arrays `sent` are read."""
    if not isinstance(out, np.ndarray):
        hint = "Of a tensor in this machine's memory, numpy.from_dlpack or PyTorch's .numpy() makes one without a copy."
        raise InvalidTensorError.for_field("out", "a numpy array", type(out).__name__, hint)
    check_unmasked(out, "out")
    if out.shape != plan.output_shape:
        raise InvalidTensorError.for_field("out", f"the output's shape {plan.output_shape}", out.shape)
    if out.dtype != numpy_dtype(plan.output_dtype):
        expected = f"the output's dtype {plan.output_dtype}"
        raise InvalidTensorError.for_field("out", expected, out.dtype, "Another one is asked for by output_dtype=.")
    if not out.flags.c_contiguous:
        received = f"strides {out.strides} of shape {out.shape}"
        raise InvalidTensorError.for_field("out", "a C-contiguous array", received)
    if not out.flags.writeable:
        raise InvalidTensorError.for_field("out", "an array that may be written to", "a read-only one")
    # Of contiguous arrays the bounds, which are what this compares, say exactly whether they overlap.
    if any(each is not None and np.may_share_memory(out, each) for each in sent):
        expected = "memory apart from the input's and the weights', which may be sent again"
        raise InvalidTensorError.for_field("out", expected, "an array that overlaps with one of them")
