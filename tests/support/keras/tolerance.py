"""How far the service may lie from Keras: by rounding, and by nothing else."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import convserve
from tests.support.keras import truth as keras_truth

TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.6e-2}
"""By compute dtype: the largest difference, as a share of the largest value before the activation.

Service and Keras run the same kernels of TensorFlow's, but not always in the same combination: in a graph TensorFlow
fuses a convolution with its bias and activation, and Keras compiles grouped convolutions with XLA. So sums are taken in
another order, and the narrow types are rounded at other points. Measured over 4000 of `keras_calls.calls`, most do
not differ at all, and the largest differences are 7e-8, 1.1e-15, 3.5e-4 and 6.4e-3. Allowed are two roundings of the
narrow types, whose epsilons are 2**-10 and 2**-7, what the service promises for float32, and some hundred epsilons of
float64, since other processors have other kernels.
"""


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for a narrow type becomes infinite
        return array.astype(dtype)


def largest(array: np.ndarray) -> float:
    """Returns the largest finite magnitude."""
    magnitudes = np.abs(array.astype(np.float64))
    return float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))


def worst_excess(output: np.ndarray, truth: keras_truth.Truth, output_dtype: str | None = None) -> float:
    """Returns by how many tolerances an output lies outside what Keras' result allows; up to 1 is agreement.

    What the activation is given may be off by the tolerance. What it then may return is what it returns a tolerance
    below, at and above Keras' value; so neither the jump of a threshold nor the steepness of an exponential counts as a
    difference, and nothing else is let through.
    """
    compute = truth.before.dtype.name
    tolerance = TOLERANCE[compute]
    expected_dtype = output_dtype or compute
    assert output.dtype.name == expected_dtype
    assert output.shape == truth.output.shape
    off = tolerance * largest(truth.before)
    with np.errstate(over="ignore", invalid="ignore"):
        near = [truth.activation(cast(truth.before.astype(np.float64) + by, compute)) for by in (-off, off)]
        bounds = np.stack([cast(each, expected_dtype).astype(np.float64) for each in (truth.output, *near)])
        low, high, found = np.fmin.reduce(bounds), np.fmax.reduce(bounds), output.astype(np.float64)
        excess = np.fmax(low - found, found - high)
    excess[np.isnan(bounds[0]) & np.isnan(found)] = 0
    excess[bounds[0] == found] = 0  # equal infinities
    assert not np.isnan(excess).any(), "NaN where Keras has a number, or the reverse"
    rounding = float(ml_dtypes.finfo(expected_dtype).eps)
    margin = max(tolerance, rounding) * max(largest(truth.before), largest(bounds[0]))
    return float(excess.max()) / margin if margin else float(excess.max() > 0)


def assert_losses_agree(found: convserve.Losses, truth: keras_truth.Truth) -> None:
    """Checks each loss by itself; it is there if and only if Keras has it.

    The weights are the same, so their losses differ by rounding alone. The activity's may differ by what the outputs
    may: where the regularizer's sum is small because most outputs are, by a tolerance of the largest.
    """
    compute, variable = truth.before.dtype.name, truth.kernel.dtype.name
    most = largest(truth.output)
    spread = TOLERANCE[compute] * max(most, most**2) * truth.output[0].size
    for what, dtype, off in (("kernel", variable, 0.0), ("bias", variable, 0.0), ("activity", compute, spread)):
        expected, received = getattr(truth.losses, what), getattr(found, what)
        if expected is None:
            assert received is None, what
        else:
            assert received == pytest.approx(expected, rel=2 * TOLERANCE[dtype], abs=off, nan_ok=True), what
