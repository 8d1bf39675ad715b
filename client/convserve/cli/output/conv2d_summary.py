"""What `convserve conv2d` says of a result: lines for people, a document for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from convserve.cli.output.report import shape_text
from convserve.display.pixels import finite_range
from convserve.display.units import bytes_text, duration_text
from convserve.tensors.codec import Array

if TYPE_CHECKING:
    from convserve import Conv2D, Result

_TIMES = ("queue_us", "compute_us")


def rows(x: Array, config: Conv2D, result: Result, total_us: float, written: list[str]) -> list[tuple[str, str]]:
    """Returns what came of a call of `total_us` microseconds; `written` has a line for each file."""
    output = result.output
    low, high = _range(output)
    infinite = _not_finite(output)
    values = f"{low:.6g} to {high:.6g}"
    if infinite:
        values = "no finite value" if math.isnan(low) else f"{values}; {infinite} not finite"
    computing, waiting = duration_text(result.timing.compute_us), duration_text(result.timing.queue_us)
    times = f"{duration_text(total_us)}: the server computed for {computing}, after a wait of {waiting}"
    if not result.warm:
        times += "\n(its first call with this geometry; the next will be faster)"
    return [
        ("input", shape_text(x.shape, x.dtype.name)),
        ("output", f"{shape_text(output.shape, output.dtype.name)}, {bytes_text(output.nbytes)}"),
        ("range", values),
        ("losses", ", ".join(f"{name} {value:.6g}" for name, value in _losses(result).items())),
        ("seed", _picked_seed(config, result)),
        ("time", times),
        ("device", result.device),
        ("written", "\n".join(written)),
    ]


def document(path: str, x: Array, result: Result, total_us: float, written: list[str]) -> dict[str, Any]:
    """Returns the same for programs; `path` is the input's, `written` the files' paths."""
    output = result.output
    low, high = _range(output)
    return {
        "input": {"path": path, "shape": x.shape, "dtype": x.dtype.name},
        "output": {
            "shape": output.shape,
            "dtype": output.dtype.name,
            "bytes": output.nbytes,
            "min": low,
            "max": high,
            "not_finite": _not_finite(output),
        },
        "losses": _losses(result),
        "seeds": _seeds(result.layers[0]),
        "timing": {"total_us": round(total_us)} | {name: getattr(result.timing, name) for name in _TIMES},
        "batch_size": result.batch_size,
        "device": result.device,
        "warm": result.warm,
        "files": written,
    }


def _not_finite(output: Array) -> int:
    return output.size - int(np.count_nonzero(np.isfinite(output)))


def _range(output: Array) -> tuple[float, float]:
    return finite_range(output.astype(np.float32) if output.dtype.name == "bfloat16" else output)


def _losses(result: Result) -> dict[str, float]:
    named = {name: getattr(result.losses[0], name) for name in ("kernel", "bias", "activity")}
    return {name: value for name, value in named.items() if value is not None}


def _seeds(config: Conv2D | None) -> dict[str, int]:
    """Returns the seeds of a layer whose weights were drawn, by weight."""
    if config is None:
        return {}
    initializers = {"kernel": config.kernel_initializer, "bias": config.bias_initializer}
    seeds = {name: initializer.parameters.get("seed") for name, initializer in initializers.items()}
    return {name: seed for name, seed in seeds.items() if seed is not None}


def _picked_seed(sent: Conv2D, result: Result) -> str:
    """Returns how to get the same weights again where the server picked a seed, otherwise nothing."""
    given = _seeds(sent)
    picked = {name: seed for name, seed in _seeds(result.layers[0]).items() if name not in given}
    if len(set(picked.values())) == 1:
        return f"{next(iter(picked.values()))}, picked by the server: with --seed it draws the same weights again"
    return ", ".join(f"{name} {seed}" for name, seed in picked.items())
