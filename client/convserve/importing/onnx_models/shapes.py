"""The shapes of a model's tensors: as the file says them, or as ONNX infers them from those of the inputs.

ONNX infers in C++, from whatever a stranger wrote. So that happens in a process of its own, `shapes_program.py`, which
is given the model without its weights and ends after some seconds; and only where something depends on a shape.
"""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from convserve.importing.onnx_models.graphs import Dimensions, Graph, stated
from convserve.importing.untrusted import start_program

_PROGRAM = Path(__file__).with_name("shapes_program.py")
_SECONDS = 120.0
_LARGEST_KEPT = 1024
"""Elements of a constant that may be a shape; of a larger one only its own shape is told."""
_MOST_DIMENSIONS = 8  # the product of a million would take hours


class Shapes:
    """Shapes by the names of tensors, of a model and of its subgraphs as far as the file says them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inferred: dict[str, Dimensions] | None = None

    def of(self, graph: Graph, tensor: str) -> Dimensions | None:
        """Returns the dimensions of a tensor, None for one that is open, or None if nothing is known."""
        said = graph.shapes.get(tensor)
        if said is not None and None not in said[2:]:
            return said
        if self._inferred is None:
            self._inferred = _infer(self._model)
        return self._inferred.get(tensor, said)


def _infer(model: Any) -> dict[str, Dimensions]:
    """Returns what ONNX infers; nothing where it cannot."""
    from onnx import GraphProto

    data = _without_weights(model).SerializeToString()
    process = start_program(_PROGRAM, str(_SECONDS))
    try:
        answer, _ = process.communicate(data, timeout=_SECONDS)
        return stated(GraphProto.FromString(answer).value_info)
    except (subprocess.TimeoutExpired, DecodeError):
        return {}
    finally:
        process.kill()
        process.communicate()


def _without_weights(model: Any) -> Any:
    """Returns a model with its outermost graph, in which large constants have become inputs of their shapes."""
    from onnx import ModelProto, helper

    bare = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    graph = bare.graph
    graph.name = "graph"
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    constants = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in constants)
    for tensor in model.graph.initializer:
        if _is_large(tensor) or tensor.data_location:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, _dimensions(tensor)))
        else:
            graph.initializer.append(tensor)
    for node in model.graph.node:
        large = [each.t for each in node.attribute if each.HasField("t") and _is_large(each.t)]
        if node.op_type == "Constant" and large:
            graph.input.append(helper.make_tensor_value_info(node.output[0], large[0].data_type, _dimensions(large[0])))
        else:
            graph.node.append(node)
    return bare


def _is_large(tensor: Any) -> bool:
    """Whether a tensor is none that may be a shape."""
    dimensions = _dimensions(tensor)
    return dimensions is None or math.prod(dimensions) > _LARGEST_KEPT


def _dimensions(tensor: Any) -> tuple[int, ...] | None:
    """Returns a tensor's dimensions, or None for one that has more than any weights."""
    return tuple(tensor.dims) if len(tensor.dims) <= _MOST_DIMENSIONS else None
