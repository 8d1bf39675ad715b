"""What `convserve conv2d` says of a result: lines for people, a document for programs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convserve.cli.output.report import shape_text
from convserve.display.pixels import finite_range
from convserve.display.units import bytes_text, duration_text
from convserve.layers.conv2d import Conv2D
from convserve.protocol.results import Result
from convserve.tensors.codec import Array

_MAX_SIDE, _MAX_CHANNELS = 12, 8
"""The largest output whose numbers are printed: they fit a screen."""


def document(path: str, x: Array, result: Result, total_us: float, files: list[str], sample: Array) -> dict[str, Any]:
    """Returns what came of a call on the input of a file, and which files were written.

    `sample` is one sample of the output, (height, width, channels), of which small ones are in the document whole.
    """
    output, losses, timing = result.output, result.losses[0], result.timing
    low, high = finite_range(output.astype(np.float32) if output.dtype.name == "bfloat16" else output)
    is_small = max(sample.shape[:2]) <= _MAX_SIDE and sample.shape[2] <= _MAX_CHANNELS
    shown = {"shape": output.shape, "dtype": output.dtype.name, "bytes": output.nbytes, "min": low, "max": high}
    return {
        "input": {"path": path, "shape": x.shape, "dtype": x.dtype.name},
        "output": shown | {"not_finite": output.size - int(np.count_nonzero(np.isfinite(output)))},
        "values": np.moveaxis(sample, -1, 0).tolist() if is_small else None,
        "losses": dict(losses.given()),
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
        ("values", "" if found["values"] is None else _grids(found["values"])),
        ("losses", ", ".join(f"{name} {value:.6g}" for name, value in found["losses"].items())),
        ("seed", _picked(found["seeds"], _seeds(sent))),
        ("time", times),
        ("device", found["device"]),
        ("written", "\n".join(written)),
    ]


def _grids(maps: list[list[list[float]]]) -> str:
    """Returns the numbers of each map, its columns aligned; a line above each of several maps says which."""
    texts = [[[f"{value:.4g}" for value in row] for row in each] for each in maps]
    width = max(len(text) for each in texts for row in each for text in row)
    grids = ["\n".join("  ".join(text.rjust(width) for text in row) for row in each) for each in texts]
    if len(grids) == 1:
        return grids[0]
    return "\n".join(f"filter {number}\n{grid}" for number, grid in enumerate(grids))


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
