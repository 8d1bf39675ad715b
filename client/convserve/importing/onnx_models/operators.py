"""Operators of ONNX' that may become part of a convolution: normalization, activations, zeros around an image.

An operator is taken for what it was when this was written; what a later version of it means, nobody here knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from convserve.activations import Activation
from convserve.errors import InvalidRequestError
from convserve.importing.onnx_models.graphs import Attributes, Graph, Op
from convserve.importing.onnx_models.tensors import Tensors
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
    if not is_known(op.kind, opset):
        return None
    try:
        if op.kind in _ACTIVATIONS:
            return _ACTIVATIONS[op.kind](op.attributes)
        if op.kind in _OTHERS:
            return _OTHERS[op.kind](op, _Parameters(op, graph, tensors), opset, rank)
    except InvalidRequestError:
        raise  # of the whole file
    except ValueError:  # what is no convolution may be broken: it stays what it is
        return None
    return None


class _Parameters:
    """An operator's constant inputs."""

    def __init__(self, op: Op, graph: Graph, tensors: Tensors) -> None:
        self._op, self._graph, self._tensors = op, graph, tensors

    def array(self, index: int) -> Array:
        """Returns an input; raises ValueError if it is not constant."""
        tensor = self._graph.constant(self._op.input(index))
        if tensor is None:
            raise ValueError("not constant")
        return self._tensors.any(tensor)

    def number(self, index: int) -> float | None:
        """Returns the only element of an input, or None if there is no such input."""
        return float(self.array(index).item()) if self._op.input(index) else None

    def integers(self, index: int) -> tuple[int, ...] | None:
        """Returns the elements of an input, or None if there is no such input."""
        return tuple(map(int, self.array(index).ravel())) if self._op.input(index) else None


def _batch_normalization(op: Op, given: _Parameters, opset: int, _: int | None) -> Operation | None:
    attributes = op.attributes
    if opset < 7:
        is_inference = attributes.integer("is_test", 0) != 0
    else:
        # What a run learns of its batch are further outputs; from opset 14 on it is said.
        is_inference = not any(op.outputs[1:]) and attributes.integer("training_mode", 0) == 0
    if not is_inference or (opset < 9 and attributes.integer("spatial", 1) != 1):
        return None
    gamma, beta, mean, variance = (given.array(index) for index in range(1, 5))
    return BatchNormalization(gamma, beta, mean, variance, attributes.number("epsilon", 1e-5))


def _clip(op: Op, given: _Parameters, opset: int, _: int | None) -> Operation | None:
    attributes = op.attributes
    lowest, highest = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    if opset < 11:
        low, high = attributes.number("min", lowest), attributes.number("max", highest)
    else:
        limits = given.number(1), given.number(2)
        low, high = (default if each is None else each for each, default in zip(limits, (lowest, highest), strict=True))
    if low <= lowest and high >= highest:
        return _named("linear")
    if (low, high) == (-1, 1):
        return _named("hard_tanh")
    if low != 0 or not high >= 0:
        return None
    if high == 6:
        return _named("relu6")
    return _named("relu", max_value=None if high >= highest else high)


def _pad(op: Op, given: _Parameters, opset: int, rank: int | None) -> Operation | None:
    attributes = op.attributes
    if attributes.text("mode", "constant") != "constant" or rank not in (3, 4):
        return None
    if opset < 11:
        pads: Any = attributes.integers("pads" if opset > 1 else "paddings")
        value: float | None = attributes.number("value", 0.0)
        axes: Any = None
    else:
        pads, value, axes = given.integers(1), given.number(2), given.integers(3)
    axes = tuple(range(rank)) if axes is None else tuple(axis + rank if axis < 0 else axis for axis in axes)
    if pads is None or value not in (None, 0) or len(pads) != 2 * len(axes) or len(set(axes)) < len(axes):
        return None
    amounts = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    around = {axis: pair for axis, pair in amounts.items() if pair != (0, 0)}
    if not set(around) <= {2, 3} or any(amount < 0 for pair in around.values() for amount in pair):
        return None
    nothing = (0, 0)
    if rank == 3:
        return ZeroPadding((nothing, around.get(2, nothing)))
    return ZeroPadding((around.get(2, nothing), around.get(3, nothing)))


def _dropout(op: Op, given: _Parameters, opset: int, _: int | None) -> Operation | None:
    is_inference = opset >= 7 or op.attributes.integer("is_test", 0) != 0
    return _named("linear") if is_inference and not given.number(2) else None


def _hard_sigmoid(attributes: Attributes) -> Operation | None:
    alpha, beta = attributes.number("alpha", 0.2), attributes.number("beta", 0.5)
    is_keras = np.float32(alpha) == np.float32(1 / 6) and beta == 0.5
    return _named("hard_sigmoid") if is_keras else None


def _selu(attributes: Attributes) -> Operation | None:
    alpha = np.float32(attributes.number("alpha", 1.67326319217681884765625))
    gamma = np.float32(attributes.number("gamma", 1.05070102214813232421875))
    is_keras = (alpha, gamma) == (np.float32(1.6732632423543772), np.float32(1.0507009873554805))
    return _named("selu") if is_keras else None


def _gelu(attributes: Attributes) -> Operation | None:
    approximate = attributes.text("approximate", "none")
    return _named("gelu", approximate=approximate == "tanh") if approximate in ("none", "tanh") else None


def _swish(attributes: Attributes) -> Operation | None:
    return _named("silu") if attributes.number("alpha", 1.0) == 1 else None


def _named(name: str, **parameters: Any) -> Activation:
    return cast(Activation, Activation.members[name](**parameters))


_ACTIVATIONS: dict[str, Callable[[Attributes], Operation | None]] = {
    "Identity": lambda _: _named("linear"),
    "Relu": lambda _: _named("relu"),
    "LeakyRelu": lambda attributes: _named("leaky_relu", negative_slope=attributes.number("alpha", 0.01)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _: _named("hard_silu"),
    "Sigmoid": lambda _: _named("sigmoid"),
    "Tanh": lambda _: _named("tanh"),
    "Elu": lambda attributes: _named("elu", alpha=attributes.number("alpha", 1.0)),
    "Selu": _selu,
    "Softplus": lambda _: _named("softplus"),
    "Softsign": lambda _: _named("softsign"),
    "Celu": lambda attributes: _named("celu", alpha=attributes.number("alpha", 1.0)),
    "ThresholdedRelu": lambda attributes: _named(
        "threshold", threshold=attributes.number("alpha", 1.0), default_value=0.0
    ),
    "Gelu": _gelu,
    "Mish": lambda _: _named("mish"),
    "Swish": _swish,
}
_OTHERS: dict[str, Callable[[Op, _Parameters, int, int | None], Operation | None]] = {
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Pad": _pad,
    "Dropout": _dropout,
}
SURROUNDING = frozenset({*_ACTIVATIONS, *_OTHERS}) - {"Identity", "Dropout"}
"""What may become part of a convolution, but for what changes nothing."""
