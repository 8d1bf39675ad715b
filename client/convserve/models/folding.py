"""Convolutions that take over what stands around them in a model: padding before, normalization and activation behind.

Nothing is folded that would change what anybody else reads: where something is read twice, returned by the model, or
called at several places, it stays as it is, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from convserve.activations import Activation
from convserve.errors import InvalidArgumentError
from convserve.layers.keras_layers import activation_at_height
from convserve.layers.layer import Layer
from convserve.models.operations import LINEAR, BatchNormalization, ZeroPadding
from convserve.tensors.codec import Array

_MOST_NORMALIZATIONS = 16  # behind one convolution: each goes over all of its kernel, which files of others have large
Operation = tuple[Layer, ...] | BatchNormalization | ZeroPadding | Activation


@dataclass(frozen=True)
class Node:
    """A layer in a model's graph, however often it is called there."""

    name: str  # which no other node has
    inputs: tuple[str, ...]  # the nodes whose outputs it reads, over all its calls: two for one that is called twice
    operation: Operation | None
    """A convolution, as a chain of layers (two for a separable one) whose last carries the activation; or what may
    become part of one; or None for anything else."""
    kind: str  # its class, such as "Conv2D"; one that ends in "1D" has tensors without a height
    dtype: str | None = None  # in which it computes; None for that of the convolution that it is folded into


@dataclass(frozen=True)
class Run:
    """Nodes that only follow each other, and the chain of layers that computes what they do."""

    nodes: tuple[str, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Left:
    """A node that might have become part of a convolution, and why it did not."""

    name: str
    kind: str
    reason: str


def folded(nodes: Sequence[Node], outputs: Collection[str]) -> tuple[list[Run], list[Left]]:
    """Returns each convolution with what is folded into it, in the order of the nodes, and what is left.

    The nodes are the whole graph, so that it is known who reads what, and the outputs those that the model returns. A
    convolution without anything to fold is a run of its own.
    """
    graph = _Graph(nodes, outputs)
    runs: list[Run] = []
    taken: set[str] = set()
    reasons: dict[str, str] = {}
    for node in nodes:
        if not isinstance(node.operation, tuple):
            continue
        run, refused = _run(node, node.operation, graph)
        runs.append(run)
        taken.update(run.nodes)
        reasons.update(refused)
    left = [
        Left(node.name, node.kind, reasons.get(node.name) or _why_left(node, graph))
        for node in nodes
        if node.operation is not None and node.name not in taken
    ]
    return runs, left


def joined(runs: Sequence[Run], nodes: Sequence[Node], outputs: Collection[str]) -> list[Run]:
    """Returns what `folded` returned, or some of it, where runs that only follow each other are one.

    Both need the nodes in an order in which they can be computed.
    """
    graph = _Graph(nodes, outputs)
    chains: list[Run] = []
    awaited: dict[str, int] = {}  # by the node that alone reads a chain's output, the place of the chain
    for run in runs:
        place = awaited.get(run.nodes[0])
        if place is None:
            place = len(chains)
            chains.append(run)
        else:
            chains[place] = Run(chains[place].nodes + run.nodes, chains[place].layers + run.layers)
        if (reader := graph.only_reader(run.nodes[-1])) is not None:
            awaited[reader.name] = place
    return chains


class _Graph:
    """Who reads whom."""

    def __init__(self, nodes: Iterable[Node], outputs: Collection[str]) -> None:
        self.by_name = {node.name: node for node in nodes}
        self._outputs = set(outputs)
        self._readers: dict[str, list[Node]] = {}
        for node in self.by_name.values():
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> Node | None:
        """Returns the node that alone reads another's output, and reads nothing else; None if there is no such."""
        readers = self._readers.get(name, [])
        alone = len(readers) == 1 and name not in self._outputs and len(self.by_name[name].inputs) <= 1
        return readers[0] if alone and len(readers[0].inputs) == 1 else None

    def why_not_alone(self, name: str, reader: Node) -> str:
        """Returns why a node's output is not one that this reader alone reads, or nothing."""
        if len(reader.inputs) > 1:
            return "it is called at several places, or reads several outputs"
        if len(self.by_name[name].inputs) > 1:
            return f"it follows {name}, which is called at several places"
        if name in self._outputs:
            return f"it follows {name}, whose output the model returns too"
        if len(self._readers.get(name, ())) > 1:
            return f"it follows {name}, whose output others read too"
        return ""


def _run(node: Node, layers: tuple[Layer, ...], graph: _Graph) -> tuple[Run, dict[str, str]]:
    """Returns a convolution's run, and what was in its way, by the name of the node that is left for it."""
    names = [node.name]
    refused: dict[str, str] = {}
    first, last, normalizations = node, node, 0
    while len(first.inputs) == 1 and (padding := graph.by_name.get(first.inputs[0])) is not None:
        if not isinstance(padding.operation, ZeroPadding) or graph.only_reader(padding.name) is not first:
            break
        try:
            layers = (_padded(layers[0], padding, padding.operation), *layers[1:])
        except (_LeftError, InvalidArgumentError) as error:
            refused[padding.name] = " ".join(str(error).split())
            break
        names.insert(0, padding.name)
        first = padding
    while (reader := graph.only_reader(last.name)) is not None:
        normalizations += isinstance(reader.operation, BatchNormalization)
        try:
            if normalizations > _MOST_NORMALIZATIONS:
                raise _LeftError(f"{_MOST_NORMALIZATIONS} normalizations before it are part of the convolution already")
            after = _after(layers[-1], reader, node.kind)
        except (_LeftError, InvalidArgumentError) as error:
            refused[reader.name] = " ".join(str(error).split())
            break
        if after is None:
            break
        layers = (*layers[:-1], after)
        names.append(reader.name)
        last = reader
    return Run(tuple(names), layers), refused


class _LeftError(Exception):
    """Why a node is not folded."""


def _check_dtype(node: Node, layer: Layer) -> None:
    if node.dtype not in (None, layer.config.compute_dtype):
        raise _LeftError(f"it computes in {node.dtype}, and the convolution in {layer.config.compute_dtype}")


def _padded(layer: Layer, node: Node, padding: ZeroPadding) -> Layer:
    """Returns a convolution that pads what is before it; raises _LeftError or InvalidArgumentError if it cannot."""
    config = layer.config
    if config.padding == "same":
        raise _LeftError("the convolution after it pads with 'same', by the size of what it gets")
    if padding.data_format not in (None, config.data_format):
        raise _LeftError(f"it pads {padding.data_format}, and the convolution after it is {config.data_format}")
    _check_dtype(node, layer)
    own = ((0, 0), (0, 0)) if isinstance(config.padding, str) else config.padding
    (top, bottom), (left, right) = own
    (above, below), (before, behind) = padding.padding
    whole = config.replace(padding=((top + above, bottom + below), (left + before, right + behind)))
    return Layer(whole, layer.kernel, layer.bias)


def _after(layer: Layer, node: Node, kind: str) -> Layer | None:
    """Returns a convolution with what follows it, or None for what never becomes part of one; raises as `_padded`."""
    operation, config = node.operation, layer.config
    if not isinstance(operation, BatchNormalization | Activation):
        return None
    _check_dtype(node, layer)
    if config.activity_regularizer is not None:
        raise _LeftError("the convolution before it has an activity_regularizer, which is about what is between them")
    if operation == LINEAR:
        return layer
    if config.activation != LINEAR:
        raise _LeftError(f"the convolution before it has the activation {config.activation.keras_name!r} already")
    if isinstance(operation, BatchNormalization):
        return _normalized(layer, operation, kind)
    own = activation_at_height(operation, config.data_format) if kind.endswith("1D") else operation
    return Layer(config.replace(activation=own), layer.kernel, layer.bias)


def _normalized(layer: Layer, normalization: BatchNormalization, kind: str) -> Layer:
    """Returns a convolution that normalizes what it computes; raises _LeftError if it cannot."""
    config, kernel = layer.config, layer.kernel
    if kernel is None:
        raise _LeftError("the convolution before it has no weights yet, but draws them")
    rank = 3 if kind.endswith("1D") else 4
    axis = rank - 1 if config.data_format == "channels_last" else 1
    if normalization.axis not in (None, axis, axis - rank):
        raise _LeftError(f"its axis {normalization.axis} is not that of the convolution's channels, {axis}")
    arrays = (normalization.gamma, normalization.beta, normalization.mean, normalization.variance)
    shapes = {np.shape(array) for array in arrays if array is not None}
    if shapes != {(config.filters,)}:
        raise _LeftError(f"its arrays have the shapes {shapes}, and the convolution before it {config.filters} filters")
    gamma, beta, bias = _wide(normalization.gamma, 1), _wide(normalization.beta), _wide(layer.bias)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(_wide(normalization.variance) + normalization.epsilon)
        bias = (bias - _wide(normalization.mean)) * scale + beta
        # What penalizes and constrains the weights is about others.
        made = config.replace(
            use_bias=True, bias_initializer="zeros", kernel_regularizer=None, bias_regularizer=None,
            kernel_constraint=None, bias_constraint=None,
        )  # fmt: skip
        result = Layer(made, _wide(kernel) * scale, bias)
    if _is_finite(layer) and not _is_finite(result):
        raise _LeftError(f"with it the weights are not finite in {config.variable_dtype}")
    return result


def _wide(array: Array | None, default: float = 0) -> Array:
    return np.asarray(default if array is None else array).astype(np.float64)


def _is_finite(layer: Layer) -> bool:
    return all(np.isfinite(_wide(array)).all() for array in layer.arrays.values())


def _why_left(node: Node, graph: _Graph) -> str:
    """Returns why a node was never met from a convolution."""
    if isinstance(node.operation, ZeroPadding):
        reader = graph.only_reader(node.name)
        if reader is None:
            return "not exactly one layer, which reads nothing else, follows it"
        return f"no convolution follows it, but {reader.name} ({reader.kind})"
    if not node.inputs:
        return "it follows no convolution"
    for name in node.inputs:
        before = graph.by_name.get(name)
        if before is None:
            return f"it follows no convolution, but {name}"
        if before.operation is None and "Conv" in before.kind:
            return f"it follows {name} ({before.kind}), which is left as it is"
        if before.operation is None:
            return f"it follows no convolution, but {name} ({before.kind})"
    reason = graph.why_not_alone(node.inputs[0], node)
    return reason or f"it follows no convolution, but {node.inputs[0]}, which is left as it is"
