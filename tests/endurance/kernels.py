"""Random layers, chains and images: does the engine compute what the definition says, whichever kernels compute?

    TF_ENABLE_ONEDNN_OPTS=1 python -m tests.endurance.kernels --calls 200000

Each call is computed by the engine in a child process and held against numpy in float64. A child that dies is counted,
and another goes on behind the layers that ended it. Some images have an infinity or NaN. A fifth of the layers are like
those that oneDNN's kernels compute wrongly by themselves. The exit status is 1 if an answer was wrong or a child died.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import ml_dtypes
import numpy as np

from convserve import Conv2D, InvalidArgumentError, Layer
from convserve.layers.plan import plan, window
from convserve.tensors.codec import Array, numpy_dtype
from convserve_server.engine.startup import load_engine
from convserve_server.engine_api import Engine
from tests.support.engines.numpy_engine import activated, convolved

_SHAPES = 50  # of images, for each chain: tracing it takes longer than computing them
_CHAINS_OF_A_CHILD = 500  # then another begins: what TensorFlow keeps of each adds up
_MAX_FLOPS, _MAX_TAPS, _MAX_ELEMENTS = 10**7, 300, 2 * 10**5
_POLICIES = ("float32",) * 4 + ("bfloat16", "mixed_bfloat16", "float16", "mixed_float16", "float64")
_EPSILONS = {"float32": 1e-5, "float64": 1e-7}  # of the largest; of narrow types two roundings
_ACTIVATIONS = ("linear", "linear", "relu", "relu6", "elu", "leaky_relu", "tanh")


@dataclass
class Found:
    """What came of it.

    Attributes:
        onednn: Whether oneDNN's kernels computed.
        calls: How many calls were computed.
        wrong: Those with a wrong answer, and by how much of what rounding explains.
        dead: The chains that ended a child.
        kinds: How many calls had what.
        seconds: How long it took.
    """

    onednn: bool = False
    calls: int = 0
    wrong: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def _chain(rng: random.Random, known: float) -> tuple[list[Conv2D], int]:
    """Returns configurations and their input's channels; `known` is the share of those that oneDNN errs at."""
    data_format, policy = rng.choice(("channels_last", "channels_last", "channels_first")), rng.choice(_POLICIES)
    first = channels = rng.choice((1, 1, 2, 3, 4, 8, 16, 17, 32, 64))
    is_known, configs = rng.random() < known, []
    if is_known:
        first = channels = rng.choice((1, 1, 1, 2, 3, 16, 24))
        policy = rng.choice((policy, "bfloat16"))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kernel = [rng.choice((1, 1, 2, 3, 3, 4, 5, 7, 11)) for _ in "hw"]
        strides = [rng.choice((1, 1, 1, 2, 2, 3, 4)) for _ in "hw"]
        dilation = [rng.choice((1, 2, 3, 4)) for _ in "hw"] if rng.random() < 0.25 else [1, 1]
        groups = rng.choice((1, 1, 1, channels, 2 if channels % 2 == 0 else 1))
        if is_known:
            groups = channels
            strides = rng.choice(([1, rng.choice((2, 3, 4))], [kernel[0] + rng.choice((1, 2)), rng.choice((1, 2))]))
            if channels in (16, 24) and kernel[1] > 1:
                groups, strides = 1, [strides[0], kernel[1]]
        windows = [(size - 1) * by + 1 for size, by in zip(kernel, dilation, strict=True)]
        amounts = tuple(tuple(rng.choice((0, 1, size - 1, size, 2 * size)) for _ in "12") for size in windows)
        padding = rng.choice(("valid", "valid", "same", "same", amounts))
        if max(strides) > 1 < max(dilation):
            if is_known or rng.random() < 0.5:
                padding = amounts
            else:
                strides = [1, 1]
        config = Conv2D(
            filters=groups * rng.choice((1, 1, 2, 3, 8, 16, 33)),
            kernel_size=tuple(kernel),
            strides=tuple(strides),
            padding=padding,
            data_format=data_format,
            dilation_rate=tuple(dilation),
            groups=groups,
            activation=rng.choice(_ACTIVATIONS),
            use_bias=rng.random() < 0.6,
            dtype=policy,
        )
        configs.append(config)
        channels = config.filters
    return configs, first


def _shapes(rng: random.Random, configs: list[Conv2D], channels: int) -> Iterator[tuple[int, ...]]:
    """Yields shapes of inputs: half of them have a window's width or little more, some are long."""
    stride = configs[0].strides[1]
    height, width = (window(configs[0], direction) for direction in (0, 1))
    for _ in range(_SHAPES):
        columns = rng.choice((width + rng.randrange(stride), rng.randint(1, stride), rng.randint(1, 40)))
        rows = rng.choice((height, *(rng.randint(1, 30) for _ in range(6)), rng.randint(100, 400)))
        if rows >= 100 and channels == 1:
            columns = rng.choice((columns, rng.randint(50, 300)))
        size = (rows, columns)
        last = configs[0].data_format == "channels_last"
        yield (rng.choice((1, 1, 2, 5)), *((*size, channels) if last else (channels, *size)))


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, divisor: float = 1.0) -> Array:
    """Returns small integers over a power of two, which narrow types have too."""
    return (rng.integers(-3, 4, shape) / divisor).astype(dtype)


def _check(engine: Engine, configs: list[Conv2D], shape: tuple[int, ...], seed: int) -> tuple[str, float] | None:
    """Returns what kind of call was computed, and its error over what rounding explains; None if it is none."""
    try:
        planned = plan(configs, shape)
    except InvalidArgumentError:
        return None
    elements = sum(int(np.prod(step.output_shape)) for step in planned.layers) + int(np.prod(shape))
    taps = sum(int(np.prod(config.kernel_size)) * config.groups for config in configs)
    if planned.flops > _MAX_FLOPS or taps > _MAX_TAPS or elements > _MAX_ELEMENTS:
        return None
    rng, layers = np.random.default_rng(seed), []
    for config, step in zip(configs, planned.layers, strict=True):
        dtype = numpy_dtype(config.variable_dtype)
        divisor = 2.0 ** np.ceil(np.log2(np.prod(step.kernel_shape[:3])) / 2 + 1)
        kernel = _integers(rng, step.kernel_shape, dtype, divisor)
        layers.append(Layer(config, kernel, _integers(rng, (config.filters,), dtype) if config.use_bias else None))
    x = _integers(rng, shape, rng.choice(["f4", numpy_dtype(configs[0].compute_dtype)]))
    if seed % 3 == 0 and len(layers) == 1 and configs[0].activation.keras_name == "linear":
        x.flat[rng.integers(x.size)] = rng.choice([np.inf, -np.inf, np.nan])
    parts = [x] if len(x) == 1 or seed % 2 else [x[:1], x[1:]]
    output = engine.convolve(layers, parts, configs[-1].compute_dtype, 0).output.astype("f8")
    expected, off = x.astype("f8"), 0.0
    for layer in layers:
        name = layer.config.compute_dtype
        with np.errstate(invalid="ignore"):
            before = convolved(layer, expected)
        epsilon = _EPSILONS.get(name) or 2 * float(ml_dtypes.finfo(name).eps)
        gain = float(np.abs(np.asarray(layer.kernel, "f8")).sum((0, 1, 2)).max())
        largest = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))
        if layer.bias is not None:  # which is added afterwards
            largest += float(np.abs(np.asarray(layer.bias, "f8")).max())
        if layer.config.activation.keras_name == "elu":  # as TensorFlow rounds exp(x) before it takes 1 from it
            largest += 1.0
        off = off * gain + epsilon * largest
        expected = activated(layer.config, before)
    finite = np.isfinite(expected)
    is_alike = np.array_equal(finite, np.isfinite(output))
    apart = float(np.abs(output[finite] - expected[finite]).max(initial=0.0)) if is_alike else np.inf
    kind = " ".join((configs[0].compute_dtype, configs[0].data_format, f"{len(configs)} layers"))
    return kind, 0.0 if apart <= off else apart / (off or 1.0)


def _compute(first: int, end: int, seed: int, known: float, results: Connection) -> None:
    """Computes some chains and sends what came of each: (chain, kinds, wrong)."""
    engine = load_engine("cpu", False, intra_op_threads=2, verbose=False)
    results.send(engine.onednn)
    for index in range(first, end):
        rng, kinds, wrong = random.Random(f"{seed} {index}"), [], []
        configs, channels = _chain(rng, known)
        for shape in _shapes(rng, configs, channels):
            checked = _check(engine, configs, shape, rng.randrange(2**31))
            if checked is not None:
                kinds.append(checked[0])
                if checked[1]:
                    wrong.append(f"{checked[1]:.3g} times the rounding: {shape} {configs}")
        results.send((index, kinds, wrong))
    results.send(None)


def compare(
    calls: int, seed: int = 0, known: float = 0.2, progress: Callable[[Found], object] = lambda _: None
) -> Found:
    """Computes so many calls or a few more; `known` is the share of layers that oneDNN errs at by itself."""
    found, began, context, first = Found(), time.monotonic(), multiprocessing.get_context("spawn"), 0
    while found.calls < calls:
        mine, its = context.Pipe(duplex=False)
        end = first + _CHAINS_OF_A_CHILD
        child = context.Process(target=_compute, args=(first, end, seed, known, its), daemon=True)
        child.start()
        its.close()
        try:
            found.onednn = mine.recv()
            while found.calls < calls and (result := mine.recv()) is not None:
                index, kinds, wrong = result
                first = index + 1
                found.calls += len(kinds)
                found.kinds = dict(Counter(found.kinds) + Counter(kinds))
                found.wrong += wrong
                progress(found)
        except EOFError:
            child.join()
            found.dead.append(f"{child.exitcode}: {_chain(random.Random(f'{seed} {first}'), known)}")
            first += 1
        child.kill()
        child.join()
    found.seconds = round(time.monotonic() - began, 1)
    return found


def _say(found: Found) -> None:
    text = f"{found.calls} calls, {len(found.wrong)} wrong, {len(found.dead)} dead"
    print(text, end="\r", file=sys.stderr, flush=True)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.kernels", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--known", type=float, default=0.2, help="the share of layers that oneDNN errs at by itself")
    found = compare(**vars(parser.parse_args()), progress=_say)
    print(json.dumps(asdict(found), indent=2))
    return 1 if found.wrong or found.dead else 0


if __name__ == "__main__":
    sys.exit(main())
