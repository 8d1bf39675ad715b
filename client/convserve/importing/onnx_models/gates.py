"""Activations that exporters write as several operators: a tensor times a function of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from convserve.activations import Activation
from convserve.importing.onnx_models.graphs import Graph, Op

_GATES = {("sigmoid",): "silu", ("hard_sigmoid",): "hard_silu", ("softplus", "tanh"): "mish"}
"""What x times these functions of x, one after the other, is: all of Keras' names."""


@dataclass(frozen=True)
class Gate:
    """A Mul that is the end of an activation.

    Attributes:
        activation: What it computes.
        tensor: Of what.
        parts: The operators whose results nobody else reads.
    """

    activation: Activation
    tensor: str
    parts: tuple[Op, ...]


def gates(graph: Graph, ops: Sequence[Op], activation_of: Callable[[Op], Activation | None]) -> dict[str, Gate]:
    """Returns the gates among a graph's nodes, by the name of the Mul."""
    readers = Counter(tensor for op in ops for tensor in op.reads)
    readers.update(graph.outputs)

    def gate(tensor: str, gating: str) -> Gate | None:
        parts: list[Op] = []
        names: list[str] = []
        while gating != tensor and len(parts) < 2:
            part = graph.producer(gating)
            activation = None if part is None or readers[gating] != 1 else activation_of(part)
            if part is None or activation is None:
                return None
            parts.insert(0, part)
            names.insert(0, activation.keras_name)
            gating = part.input(0)
        name = _GATES.get(tuple(names)) if gating == tensor else None
        return None if name is None else Gate(cast(Activation, Activation.members[name]()), tensor, tuple(parts))

    found = {}
    for op in ops:
        if op.kind == "Mul" and len(op.inputs) == 2:
            one, other = op.inputs
            made = gate(one, other) or gate(other, one)
            if made is not None:
                found[op.name] = made
    return found
