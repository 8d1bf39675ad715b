"""Random layers and chains of every kind: does computing one take more memory than its plan says?

    python -m tests.endurance.peak_memory --seconds 600

Each call is computed by the engine in a child process, whose largest resident size is held against `memory_bytes` of
its plan. The first FLOOR_BYTES above the plan are ignored: traces, threads' buffers, and what the C library keeps. The
exit status is 1 if a call takes more than RATIO times its plan beside that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convserve import Conv2D, InvalidArgumentError, Layer, activations
from convserve.layers.plan import Plan, plan
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import numpy_dtype
from convserve_server.engine.startup import load_engine
from convserve_server.engine_api import Engine
from tests.support.processes import status

RATIO = 1.5
FLOOR_BYTES = 24 * 2**20
_MAX_PLAN_BYTES, _MAX_FLOPS = 400 * 2**20, 3 * 10**9
_DTYPES = ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        layers: Each layer's arguments of Conv2D.
        shape: The input's.
        dtype: The input's.
    """

    layers: tuple[dict[str, Any], ...]
    shape: tuple[int, ...]
    dtype: str

    def configs(self) -> list[Conv2D]:
        """Returns the layers' configurations."""
        return [Conv2D(**arguments) for arguments in self.layers]

    def plan(self) -> Plan:
        """Returns its plan."""
        return plan(self.configs(), self.shape, input_dtype=self.dtype, drawn=[False] * len(self.layers))


@dataclass(frozen=True)
class Peaks:
    """What came of it.

    Attributes:
        calls: How many calls were computed.
        weighed: How many of them had a plan larger than the floor.
        worst: The largest ratio of peak, without the floor, and plan.
        excesses: Calls above RATIO, with plan and peak in bytes.
        failed: Calls that were not computed, as a server may refuse them.
    """

    calls: int
    weighed: int
    worst: float
    excesses: list[dict[str, Any]]
    failed: list[str]


def random_case(rng: random.Random) -> Case:
    """Returns a call that its plan allows, of at most 400 MiB and 3 GFLOP by it."""
    while True:
        channels_last, count = rng.random() < 0.6, rng.choice((1, 1, 2, 3))
        channels = rng.choice((1, 2, 3, 8, 16, 32))
        size = rng.choice((8, 300, 700, 1000)), rng.choice((9, 301, 701, 1001))
        shape: tuple[int, ...] = (rng.choice((1, 1, 3)), *((*size, channels) if channels_last else (channels, *size)))
        layers, at = [], shape
        try:
            for _ in range(count):
                arguments = _random_layer(rng, channels_last, at[3 if channels_last else 1])
                at = Conv2D(**arguments).output_shape(at)
                layers.append(arguments)
            case = Case(tuple(layers), shape, rng.choice(("float32", "uint8", "float16")))
            planned = case.plan()
        except InvalidArgumentError:
            continue
        if planned.memory_bytes <= _MAX_PLAN_BYTES and planned.flops <= _MAX_FLOPS:
            return case


def _random_layer(rng: random.Random, channels_last: bool, channels: int) -> dict[str, Any]:
    """Returns a layer's arguments, which may be wrong."""
    groups = rng.choice((1, 1, 1, channels, channels, 2))
    far = rng.choice((2, 3, 3, 7, 100, 500, 10_000))
    padding = rng.choice(("same", "same", "valid", ((1, 2), (0, 3)), ((far, far), (far, far))))
    dilated, name = rng.random() < 0.4, rng.choice(sorted(activations.Activation.members))
    activation: Any = activations.Activation.members[name]
    if name == "threshold":
        activation = activation(0.25, -1.5)
    elif "axis" in activation.__dataclass_fields__:
        activation = activation(axis=rng.choice((-1, 1, 2)))
    elif name == "gelu":
        activation = activation(approximate=rng.random() < 0.5)
    elif name == "relu":
        activation = rng.choice((activation(), activation(0.1, 3.0, 0.2)))
    else:
        activation = rng.choice((activation(), "linear"))
    return {
        "filters": max(1, groups) * rng.choice((1, 1, 2, 4)),
        "kernel_size": (rng.choice((1, 2, 3, 5)), rng.choice((1, 2, 3, 5))),
        "strides": rng.choice((1, 1, 2, far)) if not dilated or not isinstance(padding, str) else 1,
        "dilation_rate": rng.choice(((far, far), (1, far), (2, 3))) if dilated else 1,
        "padding": padding,
        "groups": groups,
        "activation": activation,
        "use_bias": rng.random() < 0.5,
        "activity_regularizer": rng.choice((None, None, None, "l1", "l2", "l1l2")),
        "kernel_regularizer": rng.choice((None, None, "l1l2")),
        "dtype": rng.choice(_DTYPES),
        "data_format": "channels_last" if channels_last else "channels_first",
    }


_engine: list[Engine] = []


def measured(case: Case) -> int:
    """Returns the bytes by which this process grew at most while it made and computed a call."""
    if not _engine:
        _engine.append(load_engine("cpu", False, keep_memory=False, verbose=False))
    _compute(
        Case(case.layers, (1, *(min(size, 40) for size in case.shape[1:])), case.dtype), may_fail=True
    )  # traces it
    ctypes.CDLL(None).malloc_trim(0)
    before = status(os.getpid(), "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    _compute(case)
    return status(os.getpid(), "VmHWM") - before


def _compute(case: Case, may_fail: bool = False) -> None:
    configs = case.configs()
    try:
        steps = case.plan().layers
    except InvalidArgumentError:
        if may_fail:  # a smaller image than the window
            return
        raise
    x = aligned_empty(case.shape, numpy_dtype(case.dtype))
    x[...] = 1
    layers = [
        Layer(
            config,
            np.ones(step.kernel_shape, numpy_dtype(config.variable_dtype)),
            np.ones(config.filters, numpy_dtype(config.variable_dtype)) if config.use_bias else None,
        )
        for config, step in zip(configs, steps, strict=True)
    ]
    _engine[0].convolve(layers, [x], configs[-1].compute_dtype, 0)


def peak_memory(seconds: float, seed: int = 0, cases: int | None = None) -> Peaks:
    """Computes random calls, for so many seconds or so many of them."""
    rng, began, calls, weighed, worst = random.Random(seed), time.monotonic(), 0, 0, 0.0
    excesses: list[dict[str, Any]] = []
    failed: list[str] = []
    # The smallest piece that glibc maps and unmaps by itself, so that what is free is the system's.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            while calls < cases if cases is not None else time.monotonic() - began < seconds:
                case = random_case(rng)
                calls += 1
                try:
                    planned, peak = case.plan().memory_bytes, pool.submit(measured, case).result(300)
                except Exception as error:  # whatever TensorFlow raises
                    failed.append(f"{case}: {error}"[:1000])
                    continue
                weighed += planned > FLOOR_BYTES
                ratio = max(0, peak - FLOOR_BYTES) / planned
                worst = max(worst, ratio)
                if ratio > RATIO:
                    excesses.append({"plan": planned, "peak": peak, "case": repr(case)})
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return Peaks(calls, weighed, round(worst, 2), excesses, failed)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.peak_memory", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="so many calls, however long they take")
    found = peak_memory(**vars(parser.parse_args()))
    print(json.dumps(asdict(found), indent=2))
    return 1 if found.excesses else 0


if __name__ == "__main__":
    sys.exit(main())
