"""An array of the caller's own that takes a call's output: `out`, as numpy's functions have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from convserve.errors import InvalidTensorError
from convserve.layers.plan import Plan
from convserve.tensors.codec import Array, check_unmasked, numpy_dtype


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
