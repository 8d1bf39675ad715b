"""Operators of ONNX' that may become part of a convolution: normalization, activations, zeros around an image.

An operator is taken for what it was when this was written; what a later version of it means, nobody here knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from convserve.activations import Activation
from convserve.errors import InvalidRequestError
from convserve.importing.onnx_models.graphs import Graph, Op
from convserve.importing.onnx_models.tensors import DTYPES, Tensors
from convserve.models.operations import BatchNormalization, ZeroPadding
from convserve.tensors.codec import Array

Operation = BatchNormalization | ZeroPadding | Activation
NEWEST = {
    "Conv": 22, "BatchNormalization": 15, "Pad": 25, "Identity": 25, "Dropout": 22, "Relu": 14, "LeakyRelu": 16,
    "Clip": 13, "HardSigmoid": 22, "HardSwish": 22, "Sigmoid": 13, "Tanh": 13, "Elu": 22, "Selu": 22, "Softplus": 22,
    "Softsign": 22, "Celu": 28, "ThresholdedRelu": 22, "Gelu": 20, "Mish": 22, "Swish": 24,
}  # fmt: skip
"""The opset of the newest version that is known here of each operator."""


def is_known(kind: str, opset: int) -> bool:
    """Whether an opset has an operator in a version that is known here, by the onnx package that is installed.

    Exporters write operators of later opsets too, such as a Mish of a runtime's own in opset 11.
    """
    from onnx import defs

    try:
        return bool(defs.get_schema(kind, opset, "").since_version <= NEWEST[kind])
    except (KeyError, defs.SchemaError):
        return False


def operation_of(op: Op, graph: Graph, tensors: Tensors, opset: int, rank: int | None) -> Operation | None:
    """Returns what an operator does, or None for one that becomes part of no convolution.

    None is also for parameters that are not constant, that Keras' function of the name does not have, or that are
    broken. `rank` is that of the convolution after it, if that is known.
    """
    if op.kind not in _PLAIN | _READERS or not is_known(op.kind, opset):
        return None
    if op.kind in _PLAIN:
        return _named(_PLAIN[op.kind])
    try:
        return _READERS[op.kind](_Operator(op, graph, tensors, opset, rank))
    except InvalidRequestError:
        raise  # of the whole file
    except ValueError:  # what is no convolution may be broken: it stays what it is
        return None


class _Operator:
    """An operator's attributes and constant inputs, its opset, and the rank of the convolution after it."""

    def __init__(self, op: Op, graph: Graph, tensors: Tensors, opset: int, rank: int | None) -> None:
        self.attribute, self.outputs, self.opset, self.rank = op.attribute, op.outputs, opset, rank
        self._op, self._graph, self._tensors = op, graph, tensors

    def array(self, index: int) -> Array:
        """Returns an input; raises ValueError if it is not constant."""
        tensor = self._graph.constant(self._op.input(index))
        if tensor is None:
            raise ValueError("not constant")
        return self._tensors.array(tensor, "constant", DTYPES)

    def number(self, index: int, default: float) -> float:
        """Returns the only element of an input, or the default if there is no such input."""
        return float(self.array(index).item()) if self._op.input(index) else default

    def integers(self, index: int) -> tuple[int, ...] | None:
        """Returns the elements of an input, or None if there is no such input."""
        return tuple(map(int, self.array(index).ravel())) if self._op.input(index) else None


def _batch_normalization(op: _Operator) -> Operation | None:
    if op.opset < 7:
        is_inference = op.attribute("is_test", 0) != 0
    else:
        # What a run learns of its batch are further outputs; from opset 14 on it is said.
        is_inference = not any(op.outputs[1:]) and op.attribute("training_mode", 0) == 0
    if not is_inference or (op.opset < 9 and op.attribute("spatial", 1) != 1):
        return None
    gamma, beta, mean, variance = (op.array(index) for index in range(1, 5))
    return BatchNormalization(gamma, beta, mean, variance, op.attribute("epsilon", 1e-5))


def _clip(op: _Operator) -> Operation | None:
    lowest, highest = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    if op.opset < 11:
        low, high = op.attribute("min", lowest), op.attribute("max", highest)
    else:
        low, high = op.number(1, lowest), op.number(2, highest)
    if low <= lowest and high >= highest:
        return _named("linear")
    if (low, high) == (-1, 1):
        return _named("hard_tanh")
    if low != 0 or not high >= 0:
        return None
    if high == 6:
        return _named("relu6")
    return _named("relu", max_value=None if high >= highest else high)


def _pad(op: _Operator) -> Operation | None:
    rank = op.rank
    if op.attribute("mode", "constant") != "constant" or rank not in (3, 4):
        return None
    axes: tuple[int, ...] | None = None
    if op.opset < 11:
        pads: tuple[int, ...] | None = op.attribute("pads" if op.opset > 1 else "paddings", ())
        value = op.attribute("value", 0.0)
    else:
        pads, value, axes = op.integers(1), op.number(2, 0.0), op.integers(3)
    axes = tuple(range(rank)) if axes is None else tuple(axis + rank if axis < 0 else axis for axis in axes)
    if pads is None or value != 0 or len(pads) != 2 * len(axes) or len(set(axes)) < len(axes):
        return None
    amounts = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    around = {axis: pair for axis, pair in amounts.items() if pair != (0, 0)}
    if not set(around) <= {2, 3} or any(amount < 0 for pair in around.values() for amount in pair):
        return None
    nothing = (0, 0)
    if rank == 3:
        return ZeroPadding((nothing, around.get(2, nothing)))
    return ZeroPadding((around.get(2, nothing), around.get(3, nothing)))


def _dropout(op: _Operator) -> Operation | None:
    is_inference = op.opset >= 7 or op.attribute("is_test", 0) != 0
    return _named("linear") if is_inference and not op.number(2, 0) else None


def _hard_sigmoid(op: _Operator) -> Operation | None:
    alpha, beta = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    is_keras = np.float32(alpha) == np.float32(1 / 6) and beta == 0.5
    return _named("hard_sigmoid") if is_keras else None


def _selu(op: _Operator) -> Operation | None:
    alpha = np.float32(op.attribute("alpha", 1.67326319217681884765625))
    gamma = np.float32(op.attribute("gamma", 1.05070102214813232421875))
    is_keras = (alpha, gamma) == (np.float32(1.6732632423543772), np.float32(1.0507009873554805))
    return _named("selu") if is_keras else None


def _gelu(op: _Operator) -> Operation | None:
    approximate = op.attribute("approximate", "none")
    return _named("gelu", approximate=approximate == "tanh") if approximate in ("none", "tanh") else None


def _swish(op: _Operator) -> Operation | None:
    return _named("silu") if op.attribute("alpha", 1.0) == 1 else None


def _named(name: str, **parameters: Any) -> Activation:
    return cast(Activation, Activation.members[name](**parameters))


_PLAIN = {
    "Identity": "linear", "Relu": "relu", "HardSwish": "hard_silu", "Sigmoid": "sigmoid", "Tanh": "tanh",
    "Softplus": "softplus", "Softsign": "softsign", "Mish": "mish",
}  # fmt: skip
"""Operators without parameters, by Keras' name."""
_READERS: dict[str, Callable[[_Operator], Operation | None]] = {
    "BatchNormalization": _batch_normalization,
    "Celu": lambda op: _named("celu", alpha=op.attribute("alpha", 1.0)),
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": lambda op: _named("elu", alpha=op.attribute("alpha", 1.0)),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": lambda op: _named("leaky_relu", negative_slope=op.attribute("alpha", 0.01)),
    "Pad": _pad,
    "Selu": _selu,
    "Swish": _swish,
    "ThresholdedRelu": lambda op: _named("threshold", threshold=op.attribute("alpha", 1.0), default_value=0.0),
}
SURROUNDING = frozenset({*_PLAIN, *_READERS}) - {"Identity", "Dropout"}
"""What may become part of a convolution, but for what changes nothing."""
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
        return Gate(_named(_GATES[names]), tensor, parts)

    found = {}
    for op in ops:
        if op.kind == "Mul" and len(op.inputs) == 2:
            one, other = op.inputs
            if made := gate(one, other) or gate(other, one):
                found[op.name] = made
    return found
