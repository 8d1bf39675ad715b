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


def document(path: str, x: Array, result: Result, total_us: float, files: list[str]) -> dict[str, Any]:
    """Returns what came of a call on the input of a file, and which files were written."""
    output, losses, timing = result.output, result.losses[0], result.timing
    low, high = finite_range(output.astype(np.float32) if output.dtype.name == "bfloat16" else output)
    named = {name: getattr(losses, name) for name in ("kernel", "bias", "activity")}
    shown = {"shape": output.shape, "dtype": output.dtype.name, "bytes": output.nbytes, "min": low, "max": high}
    return {
        "input": {"path": path, "shape": x.shape, "dtype": x.dtype.name},
        "output": shown | {"not_finite": output.size - int(np.count_nonzero(np.isfinite(output)))},
        "losses": {name: value for name, value in named.items() if value is not None},
        "seeds": _seeds(result.layers[0]),
        "timing": {"total_us": round(total_us), "queue_us": timing.queue_us, "compute_us": timing.compute_us},
        "batch_size": result.batch_size,
        "device": result.device,
        "warm": result.warm,
        "files": files,
    }


def rows(found: dict[str, Any], sent: Conv2D, written: list[str]) -> list[tuple[str, str]]:
    """Returns such a document for people, given the layer as it was sent and a line for each file."""
    output, timing = found["output"], found["timing"]
    values = f"{output['min']:.6g} to {output['max']:.6g}"
    if output["not_finite"]:
        values = "no finite value" if math.isnan(output["min"]) else f"{values}; {output['not_finite']} not finite"
    total, waiting, computing = (duration_text(timing[name]) for name in ("total_us", "queue_us", "compute_us"))
    times = f"{total}: the server computed for {computing}, after a wait of {waiting}"
    if not found["warm"]:
        times += "\n(its first call with this geometry; the next will be faster)"
    return [
        ("input", shape_text(found["input"]["shape"], found["input"]["dtype"])),
        ("output", f"{shape_text(output['shape'], output['dtype'])}, {bytes_text(output['bytes'])}"),
        ("range", values),
        ("losses", ", ".join(f"{name} {value:.6g}" for name, value in found["losses"].items())),
        ("seed", _picked(found["seeds"], _seeds(sent))),
        ("time", times),
        ("device", found["device"]),
        ("written", "\n".join(written)),
    ]


def _seeds(config: Conv2D | None) -> dict[str, int]:
    """Returns the seeds of a layer whose weights were drawn, by weight."""
    if config is None:
        return {}
    initializers = {"kernel": config.kernel_initializer, "bias": config.bias_initializer}
    seeds = {name: initializer.parameters.get("seed") for name, initializer in initializers.items()}
    return {name: seed for name, seed in seeds.items() if seed is not None}


def _picked(seeds: dict[str, int], given: dict[str, int]) -> str:
    """Returns how to get the same weights again where the server picked a seed, otherwise nothing."""
    picked = {name: seed for name, seed in seeds.items() if name not in given}
    if len(set(picked.values())) == 1:
        return f"{next(iter(picked.values()))}, picked by the server: with --seed it draws the same weights again"
    return ", ".join(f"{name} {seed}" for name, seed in picked.items())
