"""ONNX files: every Conv with constant weights, read with the onnx package's messages, and without running anything.

A model is checked before it becomes objects, weights before they are read, and files of weights beside it have to be in
its folder. Layers have `data_format="channels_first"`, as ONNX has its axes, so that each takes the very tensor that
the Conv takes. A Conv of rank 3 becomes a layer for images of height 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convserve.errors import (
    InvalidArgumentError,
    InvalidConfigurationError,
    InvalidRequestError,
    needing,
)
from convserve.importing.imported import NOT_FOLDED, Contents, NotImportedError, left_as_it_is
from convserve.importing.onnx_models import wire
from convserve.importing.onnx_models.convolutions import kernel_rank, layer_of
from convserve.importing.onnx_models.graphs import INPUT, Graph, Op, operator_name, opset_of, text_of
from convserve.importing.onnx_models.operators import SURROUNDING, gates, is_known, operation_of
from convserve.importing.onnx_models.shapes import Shapes
from convserve.importing.onnx_models.tensors import Tensors
from convserve.importing.untrusted import Budget, refusal
from convserve.layers.layer import Layer
from convserve.models.folding import Node, folded

_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_BEFORE = "import the model as it was before that"
_REASONS = {
    "ConvTranspose": "a transposed convolution, which no Conv2D computes",
    "DeformConv": "a deformable convolution, which no Conv2D computes",
    "QLinearConv": f"it computes with quantized numbers: {_BEFORE}",
    "ConvInteger": f"it computes with quantized numbers: {_BEFORE}",
    "com.microsoft.FusedConv": f"ONNX Runtime made it, for itself: {_BEFORE}",
    "com.microsoft.nchwc.Conv": f"ONNX Runtime made it, for itself: {_BEFORE}",
}
"""Why what looks like a Conv is none."""


def read(file: Path, budget: Budget, fold_batch_norm: bool) -> Contents:
    """Returns what an ONNX file holds, under the nodes' names; the model's name is the file's.

    With `fold_batch_norm` a Conv takes over what surrounds it, as far as each only follows the other: a Pad before it,
    and BatchNormalization and an activation after it.
    """
    model = _model(file, budget)
    reader = _Reader(model, Contents(file.stem), Tensors(file, budget), fold_batch_norm)
    reader.read(Graph(model.graph, reader.functions))
    reader.list_functions()
    return reader.contents


def _model(file: Path, budget: Budget) -> Any:
    with needing("Reading .onnx files needs onnx: pip install 'convserve[import]'."):
        import onnx

    size = file.stat().st_size
    if size > wire.MOST_BYTES:
        expected = f"a model of at most {wire.MOST_BYTES} bytes, which is all that Protocol Buffers take"
        raise refusal(expected, f"{size} bytes: save its weights as external data")
    data = file.read_bytes()
    if data.startswith(_GIT_LFS):
        raise refusal("an ONNX model", "a pointer of Git LFS to one: fetch the file itself, with git lfs pull")
    wire.check(data, onnx.ModelProto.DESCRIPTOR, budget)
    model = onnx.load_model_from_string(data)
    if not model.HasField("graph"):
        raise refusal("an ONNX model", "a file without a graph")
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        expected = f"a model of an opset from 1 to {newest}, which the installed onnx {onnx.__version__} knows"
        raise refusal(expected, f"opset {opset}{': install a newer onnx' if opset > newest else ''}")
    return model


class _Reader:
    """Goes through a model's graphs."""

    def __init__(self, model: Any, contents: Contents, tensors: Tensors, fold_batch_norm: bool) -> None:
        self.contents = contents
        self.functions = frozenset(operator_name(each.domain, each.name) for each in model.functions)
        self._model = model
        self._tensors = tensors
        self._folds = fold_batch_norm
        self._opset = opset_of(model)
        self._shapes = Shapes(model)

    def read(self, graph: Graph) -> None:
        """Adds a graph's layers, and what else it has, subgraphs included."""
        layers: dict[str, Layer] = {}
        refused: dict[str, Exception] = {}
        for op in graph.ops:
            if op.kind != "Conv":
                continue
            try:
                layers[op.name] = self._layer(op, graph)
            except InvalidRequestError:
                raise  # of the whole file
            except (InvalidConfigurationError, NotImportedError) as error:
                refused[op.name] = error
            except InvalidArgumentError as error:
                refused[op.name] = error.under(f"{op.name}.")
        # Of what is constant nothing is computed.
        computed = [op for op in graph.ops if not op.outputs or graph.constant(op.outputs[0]) is None]
        gone, reasons = self._fold(graph, computed, layers) if self._folds else (set(), {})
        for op in computed:
            if op.name in layers:
                self.contents.layers.append((op.name, layers[op.name]))
            elif op.name not in gone:
                self.contents.skip(op.name, op.kind, refused.get(op.name) or self._why_no_conv(op, reasons))
            for subgraph in graph.subgraphs(op):
                self.read(subgraph)

    def list_functions(self) -> None:
        """Lists the Convs in the model's own functions, whose weights are given where these are called."""
        for function in self._model.functions:
            for node in function.node:
                if operator_name(node.domain, node.op_type) == "Conv":
                    name = "/".join(map(text_of, (function.name, node.name or next(iter(node.output), ""))))
                    reason = "it is in a function: onnx.inliner.inline_local_functions puts it into the graph"
                    self.contents.skip(name, "Conv", reason)

    def _layer(self, op: Op, graph: Graph) -> Layer:
        if not is_known(op.kind, self._opset):
            raise NotImportedError(f"a Conv of opset {self._opset}, which may mean something else than those before")
        return layer_of(op, graph, self._tensors, lambda tensor: self._shapes.of(graph, tensor))

    def _fold(self, graph: Graph, ops: list[Op], layers: dict[str, Layer]) -> tuple[set[str], dict[str, str]]:
        """Puts into `layers` what each Conv becomes; returns what is part of one, and why the rest is left."""
        ranks = {op.input(0): kernel_rank(op, graph) for op in ops if op.name in layers}
        operations: dict[str, Any] = {
            op.name: operation_of(op, graph, self._tensors, self._opset, ranks.get(next(iter(op.outputs), "")))
            for op in ops
        }
        gated = gates(graph, ops, operations)
        parts = {part.name: name for name, gate in gated.items() for part in gate.parts}
        nodes = []
        for op in (op for op in ops if op.name not in parts):
            inputs: Iterable[str] = op.reads
            operation = operations[op.name]
            if op.name in layers:
                operation, inputs = (layers[op.name],), (op.input(0),)
            elif op.name in gated:
                operation, inputs = gated[op.name].activation, (gated[op.name].tensor,)
            elif operation is not None:
                inputs = (op.input(0),)
            sources = (_source(graph, tensor) for tensor in inputs if tensor and graph.constant(tensor) is None)
            nodes.append(Node(op.name, tuple(dict.fromkeys(sources)), operation, op.kind))
        runs, left = folded(nodes, {_source(graph, tensor) for tensor in graph.outputs})
        for run in runs:
            (name,) = (name for name in run.nodes if name in layers)
            (layers[name],) = run.layers
        gone = {name for run in runs for name in run.nodes}
        reasons = {each.name: each.reason for each in left}
        # What is part of a gate fares as the gate.
        reasons |= {part: reasons[name] for part, name in parts.items() if name in reasons}
        return gone | {part for part, name in parts.items() if name in gone}, reasons

    def _why_no_conv(self, op: Op, reasons: dict[str, str]) -> str:
        if op.kind not in SURROUNDING:
            return _REASONS.get(op.kind, "not a Conv")
        if not self._folds:
            return NOT_FOLDED
        if op.name in reasons:
            return left_as_it_is(reasons[op.name])
        if op.kind == "BatchNormalization":
            return left_as_it_is("it normalizes by the batch, as in training, or its arrays are not constant")
        return left_as_it_is("no Conv2D has it with these parameters")


def _source(graph: Graph, tensor: str) -> str:
    """Returns the name of the node that computes a tensor, or what else it is."""
    op = graph.producer(tensor)
    return op.name if op is not None else f"{INPUT}{tensor}"
