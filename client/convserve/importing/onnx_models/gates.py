"""Activations that exporters write as several operators: a tensor times a function of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from convserve.activations import Activation
from convserve.importing.onnx_models.graphs import Graph, Op

_GATES = {("sigmoid",): "silu", ("hard_sigmoid",): "hard_silu", ("softplus", "tanh"): "mish"}
"""What x times these functions of x, one after the other, is: all of Keras' names."""


class Gate(NamedTuple):
    """A Mul that is the end of an activation."""

    activation: Activation
    tensor: str  # that it is applied to
    parts: list[Op]  # whose results nobody else reads


def gates(graph: Graph, ops: Sequence[Op], operations: Mapping[str, object]) -> dict[str, Gate]:
    """Returns the gates among a graph's nodes, by the name of the Mul; `operations` are what the nodes do, by name."""
    readers = Counter(tensor for op in ops for tensor in op.reads)
    readers.update(graph.outputs)

    def gate(tensor: str, gating: str) -> Gate | None:
        parts: list[Op] = []
        names: tuple[str, ...] = ()
        while gating != tensor and len(parts) < 2:
            part = graph.producer(gating)
            activation = None if part is None or readers[gating] != 1 else operations.get(part.name)
            if part is None or not isinstance(activation, Activation):
                return None
            parts.append(part)
            names = (activation.keras_name, *names)
            gating = part.input(0)
        if gating != tensor or names not in _GATES:
            return None
        return Gate(cast(Activation, Activation.members[_GATES[names]]()), tensor, parts)

    found = {}
    for op in ops:
        if op.kind == "Mul" and len(op.inputs) == 2:
            one, other = op.inputs
            if made := gate(one, other) or gate(other, one):
                found[op.name] = made
    return found
