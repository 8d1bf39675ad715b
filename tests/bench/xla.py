"""Whether compiling a forward pass with XLA would help on this machine's CPU: why the server has no setting for it.

The same layer as one function with open sizes, as the server traces it, and compiled by XLA for the very shape. Times
are of calls with numpy in and out, medians of rounds that take turns. XLA compiles anew for each new batch and image
size, which is what its first call takes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.bench import record, tables
from tests.bench.gpu_cases import Case, five

_MAX_DIFFERENCE = 1e-3


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = record.parser("xla", __doc__).parse_args()
    import tensorflow as tf

    rounds, seconds = (1, 0.05) if arguments.quick else (9, 0.5)
    result = record.begun("xla", arguments, tensorflow=tf.__version__, rounds=rounds)
    result["layers"] = [
        {"layer": case.name, **_measured(tf, case, rounds, seconds)}
        for case in five()
        if not arguments.quick or case.name in ("W1", "W2")
    ]
    record.write(arguments, result)
    print(tables.xla(result))
    return 0


def _measured(tf: Any, case: Case, rounds: int, seconds: float) -> dict[str, float]:
    shape, size = case.input_shape, case.kernel_size
    rng = np.random.default_rng(0)
    x = rng.random(shape, dtype=np.float32)
    kernel = tf.constant(rng.random((size, size, shape[3], case.filters), dtype=np.float32))
    bias = tf.zeros([case.filters])

    def layer(x: Any) -> Any:
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, case.strides, case.padding.upper()), bias)
        return y if case.activation is None else getattr(tf.nn, case.activation)(y)

    open_sizes = [tf.TensorSpec([None, None, None, shape[3]])]
    traced = tf.function(layer, input_signature=open_sizes, autograph=False)
    compiled = tf.function(layer, input_signature=[tf.TensorSpec(shape)], autograph=False, jit_compile=True)
    expected, began = traced(tf.constant(x)).numpy(), time.perf_counter()
    y = compiled(tf.constant(x)).numpy()
    first_s = time.perf_counter() - began
    difference = float(np.abs(y - expected).max() / np.abs(expected).max())
    if difference > _MAX_DIFFERENCE:
        raise AssertionError(f"XLA's answer differs by {difference:g} of the largest value")
    times: list[tuple[float, float]] = [
        (
            _median_s(lambda: traced(tf.constant(x)).numpy(), seconds),
            _median_s(lambda: compiled(tf.constant(x)).numpy(), seconds),
        )
        for _ in range(rounds)
    ]
    return {
        "traced_ms": 1e3 * statistics.median(each for each, _ in times),
        "compiled_ms": 1e3 * statistics.median(each for _, each in times),
        "ratio": statistics.median(each / other for other, each in times),
        "first_ms": 1e3 * first_s,
    }


def _median_s(call: Callable[[], object], seconds: float) -> float:
    took, until = [], time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


if __name__ == "__main__":
    sys.exit(main())
