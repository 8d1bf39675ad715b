"""Layers and plans as small HTML tables, which notebooks show. All text is escaped: names are other people's."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from convserve.display.units import bytes_text, flops_text
from convserve.tensors.codec import Shape, itemsize

if TYPE_CHECKING:
    from convserve.layers.conv2d import Conv2D
    from convserve.layers.plan import Plan

Row = tuple[str, object]


def conv2d_table(config: Conv2D) -> str:
    """Returns a configuration's parameters, without the defaults."""
    return _table("Conv2D", config.given().items())


def layer_table(kind: str, identity: Iterable[Row], config: Conv2D, kernel_shape: Shape | None) -> str:
    """Returns what a layer is, with its configuration and the size of its weights.

    Args:
        kind: What it is called.
        identity: Rows that say which one it is.
        config: Its configuration.
        kernel_shape: Its kernel's shape; None if a server is to draw the weights.
    """
    if kernel_shape is None:
        weights: list[Row] = [("weights", "drawn by the server")]
    else:
        number = math.prod(kernel_shape) + (config.filters if config.use_bias else 0)
        amount = bytes_text(number * itemsize(config.variable_dtype))
        weights = [("kernel", f"{kernel_shape} {config.variable_dtype}"), ("parameters", f"{number:,}, {amount}")]
    return _table(kind, [*identity, *config.given().items(), *weights])


def plan_table(plan: Plan) -> str:
    """Returns what a call comes to, and of a chain what each layer comes to."""
    if len(plan.layers) == 1:
        layers: list[Row] = [("kernel", plan.layers[0].kernel_shape)]
        chain = ""
    else:
        layers = [("layers", len(plan.layers))]
        head = ("layer", "kernel", "output", "parameters", "work")
        lines = [
            (index, step.kernel_shape, step.output_shape, f"{step.parameters:,}", flops_text(step.flops))
            for index, step in enumerate(plan.layers)
        ]
        chain = _grid(head, lines)
    admission: list[Row] = []
    if plan.admitted is not None:
        admission = [("admitted", "yes" if plan.admitted else f"no: {plan.refusal}")]
    rows: list[Row] = [
        ("output", f"{plan.output_shape} {plan.output_dtype}, {bytes_text(plan.output_bytes)}"),
        ("input", bytes_text(plan.input_bytes)),
        *layers,
        ("parameters", f"{plan.parameters:,}, {bytes_text(plan.weight_bytes)}"),
        ("work", flops_text(plan.flops)),
        ("memory", f"{bytes_text(plan.memory_bytes)} at once on the server, at least"),
        *admission,
    ]
    return _table("Plan", rows) + chain


def _table(caption: str, rows: Iterable[Row]) -> str:
    cells = "".join(f"<tr><th>{_text(label)}</th><td>{_text(value)}</td></tr>" for label, value in rows)
    return f"<table><caption>{_text(caption)}</caption>{cells}</table>"


def _grid(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    first = "".join(f"<th>{_text(each)}</th>" for each in head)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(each)}</td>' for each in line)}</tr>" for line in lines)
    return f"<table><tr>{first}</tr>{rows}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
