"""An ONNX graph: its nodes under names of their own, who computes which tensor, and which tensors are constant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

import numpy as np

from convserve.errors import InvalidConfigurationError, short_repr
from convserve.importing.untrusted import refusal

INPUT = "the input "
"""What stands before the name of a tensor that no node computes, where a node's name is expected."""
Dimensions = tuple[int | None, ...]
"""Those of a tensor, batch and channels first; None for one that is open."""
_FIRST_OPSET = 1
_LONGEST_NAME = 500  # of a node: each in a subgraph has those of the nodes around it in its own
_DOMAINS = ("", "ai.onnx")
_Value = TypeVar("_Value", int, float, str, tuple[int, ...])
_TYPES = {int: ("INT", "i"), float: ("FLOAT", "f"), str: ("STRING", "s"), tuple: ("INTS", "ints")}
"""By the type of an attribute's value, ONNX' name of it, and the field that has it."""
_CONSTANTS = {
    "value_float": ("f", "f4"),
    "value_floats": ("floats", "f4"),
    "value_int": ("i", "i8"),
    "value_ints": ("ints", "i8"),
}
"""By a Constant's attribute for numbers, the field that has them, and their dtype."""


@dataclass(frozen=True)
class Op:
    """A node of a graph."""

    name: str  # its own, or its output's, unique in the graph, after those of the nodes whose subgraphs it is in
    kind: str  # its operator, with the domain before it where that is not ONNX' own
    inputs: tuple[str, ...]  # the names of its tensors; "" for one that is left out
    outputs: tuple[str, ...]
    reads: frozenset[str]  # tensors of this graph or around it, with what its subgraphs read, constants too
    proto: Any = field(repr=False)

    def input(self, index: int) -> str:
        """Returns the name of an input; "" if there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Its attributes, by name, as AttributeProtos."""
        return {attribute.name: attribute for attribute in self.proto.attribute}

    def attribute(self, name: str, default: _Value) -> _Value:
        """Returns an attribute of the default's type, or the default where there is none.

        Raises InvalidConfigurationError if it is of another type.
        """
        if name not in self.attributes:
            return default
        value = self._value(name, *_TYPES[type(default)])
        converted: Any = value.decode(errors="replace") if isinstance(value, bytes) else type(default)(value)
        return converted  # type: ignore[no-any-return]

    def _value(self, name: str, kind: str, where: str) -> Any:
        attribute = self.attributes[name]
        # The first version of the format did not say the type.
        if attribute.ref_attr_name or attribute.type not in (0, attribute.AttributeType.Value(kind)):
            received = f"one of type {attribute.type}" if not attribute.ref_attr_name else "a reference"
            raise InvalidConfigurationError.for_field(name, f"an attribute of type {kind}", received)
        return getattr(attribute, where)

    @cached_property
    def constant(self) -> Any:
        """The TensorProto of a Constant, or None for any other: made once, however many read it."""
        if self.kind != "Constant":
            return None
        from onnx import numpy_helper

        try:
            if "value" in self.attributes:
                return self._value("value", "TENSOR", "t")
            for name, attribute in self.attributes.items():
                if name in _CONSTANTS:
                    where, dtype = _CONSTANTS[name]
                    return numpy_helper.from_array(np.array(getattr(attribute, where), dtype), self.outputs[0])
        except InvalidConfigurationError:  # of a Conv that reads it the reason is told, and others may be sound
            pass
        return None


class Graph:
    """One graph of a model, with what surrounds it."""

    def __init__(self, proto: Any, functions: frozenset[str] = frozenset(), outer: Graph | None = None, path: str = ""):
        """Takes a GraphProto; raises InvalidRequestError if tensors are computed twice, or by way of themselves."""
        self.proto = proto
        self._outer = outer
        self._functions = functions
        self._initializers = {text_of(tensor.name): tensor for tensor in proto.initializer}
        self._sparse = {text_of(sparse.values.name) for sparse in proto.sparse_initializer}
        self.inputs = {text_of(value.name) for value in proto.input} - {""}
        self._known = {*self._initializers, *self._sparse, *self.inputs}
        self.outputs = tuple(text_of(value.name) for value in proto.output)
        self.ops: list[Op] = []
        self._producers: dict[str, Op] = {}
        self._sources: dict[str, tuple[Graph | None, str, Op | None]] = {}
        names: dict[str, int] = {}
        for node in proto.node:
            op = self._op(node, names, path)
            self.ops.append(op)
            for tensor in filter(None, op.outputs):
                if tensor in self._producers:
                    raise refusal("a graph that computes each tensor once", f"{short_repr(tensor)} twice")
                self._producers[tensor] = op
        self._check_order()

    @cached_property
    def shapes(self) -> dict[str, Dimensions]:
        """What the file says of the shapes of this graph's tensors."""
        return stated((*self.proto.value_info, *self.proto.input, *self.proto.output))

    def subgraphs(self, op: Op) -> Iterator[Graph]:
        """Yields the graphs in a node's attributes, such as the branches of an If."""
        for attribute in op.proto.attribute:
            for proto in _graphs_in(attribute):
                yield Graph(proto, self._functions, self, f"{op.name}/{text_of(attribute.name)}/")

    def producer(self, tensor: str) -> Op | None:
        """Returns the node of this graph that computes a tensor."""
        return self._producers.get(tensor)

    def constant(self, tensor: str) -> Any:
        """Returns the TensorProto of a tensor that is the same in every run, or None; Identity is looked through."""
        graph, tensor, op = self._source(tensor)
        if op is not None:
            return op.constant
        return None if graph is None else graph._initializers.get(tensor)

    def why_not_constant(self, tensor: str) -> str:
        """Returns where a tensor comes from that is not constant."""
        graph, tensor, op = self._source(tensor)
        if op is not None and op.kind == "DequantizeLinear":
            return "is quantized (DequantizeLinear computes it): import the model as it was before"
        if op is not None:
            return f"is computed by {op.name} ({op.kind}): save the model with its constants folded, as onnxslim does"
        if graph is None:
            return "is nowhere in the file"
        return "is sparse" if tensor in graph._sparse else "is an input of the graph, so that every run has its own"

    def _source(self, tensor: str) -> tuple[Graph | None, str, Op | None]:
        """Returns where a tensor comes from, before any Identity: the graph, its name there, and the node if any."""
        passed = []  # so that the next of many in a row need not go all the way
        found: tuple[Graph | None, str, Op | None] | None = None
        while found is None:
            passed.append(tensor)
            found, op = self._sources.get(tensor), self._producers.get(tensor)
            if found is None and op is not None and op.kind == "Identity" and op.input(0):
                tensor = op.input(0)
            elif found is None and (op is not None or tensor in self._known):
                found = self, tensor, op
            elif found is None:
                found = (None, tensor, None) if self._outer is None else self._outer._source(tensor)
        self._sources.update(dict.fromkeys(passed, found))
        return found

    def _op(self, node: Any, names: dict[str, int], path: str) -> Op:
        outputs = tuple(map(text_of, node.output))
        # Nodes may have the same name, or none.
        output = next(filter(None, outputs), "")
        own = path + ((text_of(node.name) or output).lstrip("/") or text_of(node.op_type))
        own = own[-_LONGEST_NAME:]
        own = f"_{own}" if own.startswith(INPUT) else own
        name, other = own, (path + output.lstrip("/"))[-_LONGEST_NAME:]
        if name in names and output and not other.startswith(INPUT):
            name = other
        while name in names:
            names[own] += 1
            name = f"{own}_{names[own]}"
        names[name] = 1
        operator = operator_name(node.domain, node.op_type)
        kind = f"function {operator}" if operator in self._functions else operator
        return Op(name, kind, tuple(map(text_of, node.input)), outputs, frozenset(_reads(node)), node)

    def _check_order(self) -> None:
        """Raises InvalidRequestError if a tensor is computed by way of itself."""
        made_by = {tensor: op.name for tensor, op in self._producers.items()}
        above = {op.name: [made_by[tensor] for tensor in op.reads if tensor in made_by] for op in self.ops}
        try:
            TopologicalSorter(above).prepare()
        except CycleError as error:
            circle = ", ".join(map(short_repr, error.args[1][:4]))
            raise refusal("a graph without circles", f"nodes that read each other: {circle}") from None


def stated(values: Iterable[Any]) -> dict[str, Dimensions]:
    """Returns what ValueInfoProtos say of shapes."""
    shapes = {}
    for value in values:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dimensions = (each.dim_value if each.HasField("dim_value") else 0 for each in tensor.shape.dim)
            shapes[text_of(value.name)] = tuple(size if size > 0 else None for size in dimensions)
    return shapes


def opset_of(model: Any) -> int:
    """Returns the version of ONNX' own operators that a model is written in."""
    versions = [opset.version for opset in model.opset_import if opset.domain in _DOMAINS]
    return max(versions, default=_FIRST_OPSET)  # the first format did not say it


def operator_name(domain: str, name: str) -> str:
    """Returns an operator's name, with the domain before it where that is not ONNX' own."""
    return text_of(name) if domain in _DOMAINS else f"{text_of(domain)}.{text_of(name)}"


def text_of(text: str | bytes) -> str:
    """Returns a text of a message; protobuf gives what is not UTF-8 as bytes."""
    return text if isinstance(text, str) else text.decode(errors="backslashreplace")


def _graphs_in(attribute: Any) -> tuple[Any, ...]:
    return (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _reads(node: Any) -> set[str]:
    """Returns the tensors that a node reads, with those that its subgraphs read from around them."""
    reads = set(map(text_of, node.input))
    for attribute in node.attribute:
        for graph in _graphs_in(attribute):
            inner = {text_of(value.name) for value in graph.output}.union(*map(_reads, graph.node))
            own = {text_of(name) for each in graph.node for name in each.output}
            own.update(text_of(each.name) for each in (*graph.input, *graph.initializer))
            reads |= inner - own
    return reads - {""}
