"""Layers that nobody called before, one after the other: does the engine's memory end growing?

    python -m tests.endurance.memory_growth --calls 20000

A new activation's parameter, kernel's size, regularizer or chain is traced anew, and initializers and constraints have
parameters too. First it measures what a trace takes, until as many are kept as the engine keeps; then what each further
call leaves. The exit status is 1 if that is more than a quarter.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convserve import Conv2D, Layer, activations, constraints, initializers, regularizers
from convserve_server.engine import traces
from convserve_server.engine.startup import load_engine
from convserve_server.engine_api import Engine
from tests.support.processes import status

_BASE: dict[str, Any] = {"data_format": "channels_last", "dtype": "float32", "use_bias": False}
_ONE = np.ones((1, 1, 1, 1), "f4")


@dataclass(frozen=True)
class Growth:
    """What came of it.

    Attributes:
        kept_layers: How many layers' traces the engine keeps.
        bytes_per_kept_layer: What the process grew by for each of them.
        further_layers: How many layers were called after these.
        bytes_per_further_layer: What the process grew by for each of those.
    """

    kept_layers: int
    bytes_per_kept_layer: int
    further_layers: int
    bytes_per_further_layer: int

    @property
    def ends(self) -> bool:
        """Whether what is not kept is freed."""
        return self.bytes_per_further_layer < self.bytes_per_kept_layer / 4


def _convolve(engine: Engine, *configs: Conv2D) -> int:
    layers = [Layer(config, np.ones((*config.kernel_size, 1, 1), "f4")) for config in configs]
    engine.convolve(layers, [_ONE], "float32", 0)
    return len(layers)


def _activation(number: int) -> Conv2D:
    return Conv2D(1, 1, activation=activations.LeakyReLU(number * 1e-6), **_BASE)


def _initialize(engine: Engine, number: int) -> int:
    engine.initialize(Conv2D(1, 1, kernel_initializer=initializers.RandomNormal(0.0, number * 1e-6), **_BASE), 1)
    return 0


def _constrain(engine: Engine, number: int) -> int:
    engine.constrain(Layer(Conv2D(1, 1, kernel_constraint=constraints.MaxNorm(number * 1e-6), **_BASE), _ONE))
    return 0


_KINDS: tuple[Callable[[Engine, int], int], ...] = (
    lambda engine, number: _convolve(engine, _activation(number)),
    lambda engine, number: _convolve(engine, *(_activation(8 * number + index) for index in range(8))),
    lambda engine, number: _convolve(engine, Conv2D(1, (number % 60 + 1, number // 60 + 1), padding="same", **_BASE)),
    lambda engine, number: _convolve(engine, Conv2D(1, 1, kernel_regularizer=regularizers.L2(number * 1e-6), **_BASE)),
    _initialize,
    _constrain,
)


def memory_growth(calls: int, kept: int | None = None) -> Growth:
    """Calls layers that differ in this process; `kept` is how many layers' traces the engine keeps, if not its own."""
    if kept is not None:
        traces._MAX_LAYERS, traces._DROPPED_LAYERS = kept, max(1, kept // 2)
    engine = load_engine("cpu", False, keep_memory=False, verbose=False)
    layers = number = 0

    def call(until_calls: float, until_layers: float) -> int:
        """Goes on until that, and returns the bytes by which this process grew."""
        nonlocal layers, number
        before = _resident()
        while number < until_calls and layers < until_layers:
            number += 1
            layers += _KINDS[number % len(_KINDS)](engine, number)
        return _resident() - before

    call(4 * len(_KINDS), np.inf)  # what TensorFlow prepares once
    first = layers
    filled = call(np.inf, traces._MAX_LAYERS)
    second = layers
    further = call(number + calls, np.inf)
    return Growth(second - first, filled // (second - first), layers - second, further // (layers - second))


def _resident() -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but not yet the system's
    return status(os.getpid(), "VmRSS")


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.memory_growth", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--kept", type=int, help="the engine's own number if not given")
    found = memory_growth(**vars(parser.parse_args()))
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.ends else 1


if __name__ == "__main__":
    sys.exit(main())
