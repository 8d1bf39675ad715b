"""ONNX models, built with onnx.helper, and what ONNX' own ReferenceEvaluator computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from convserve import Layer
from tests.support.engines.numpy_engine import activated, convolved

_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def conv(name: str, x: str = "x", y: str = "y", bias: bool = True, **attributes: Any) -> onnx.NodeProto:
    """Returns a Conv whose weights are called NAME.weight and NAME.bias."""
    inputs = [x, f"{name}.weight", *([f"{name}.bias"] if bias else [])]
    return helper.make_node("Conv", inputs, [y], name=name, **attributes)


def weights(name: str, *shape: int, bias: bool = True, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """Returns random weights for a Conv of this name."""
    rng = np.random.default_rng([seed, *shape])
    arrays = {f"{name}.weight": rng.normal(size=shape)} | ({f"{name}.bias": rng.normal(size=shape[0])} if bias else {})
    return {key: value.astype(dtype) for key, value in arrays.items()}


def normalization(name: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """Returns a BatchNormalization whose arrays are called NAME.weight, NAME.bias, NAME.mean and NAME.var."""
    inputs = [x, *(f"{name}.{part}" for part in ("weight", "bias", "mean", "var"))]
    return helper.make_node("BatchNormalization", inputs, [y], name=name, **attributes)


def statistics(name: str, channels: int, seed: int = 0, dtype: str = "float32") -> dict[str, Any]:
    """Returns random arrays for a BatchNormalization of this name, the variance above 0."""
    rng = np.random.default_rng([seed, channels])
    arrays = {part: rng.normal(size=channels) for part in ("weight", "bias", "mean")}
    arrays["var"] = rng.uniform(0.2, 3, channels)
    return {f"{name}.{part}": value.astype(dtype) for part, value in arrays.items()}


def model(
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, Any],
    *,
    x: Sequence[int | str | None] = ("n", "c", "h", "w"),
    y: Sequence[str] = ("y",),
    dtype: str = "float32",
    opset: int = 21,
    ir_version: int = 8,
    value_info: Sequence[onnx.ValueInfoProto] = (),
    **others: Any,
) -> onnx.ModelProto:
    """Returns a model with the input "x"; arrays become initializers, which are inputs too in the first formats."""
    initializers = [
        each if isinstance(each, TensorProto) else numpy_helper.from_array(np.asarray(each), name)
        for name, each in arrays.items()
    ]
    inputs = [helper.make_tensor_value_info("x", _TYPES[dtype], x)]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in initializers]
    outputs = [helper.make_tensor_value_info(name, _TYPES[dtype], None) for name in y]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers, value_info=list(value_info))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, **others)


def write(path: Path, made: onnx.ModelProto) -> Path:
    """Writes a model, and returns where."""
    path.write_bytes(made.SerializeToString())
    return path


def reference(made: onnx.ModelProto | Path, x: Any, *more: Any) -> list[Any]:
    """Returns a model's outputs, as ONNX' own evaluator computes them."""
    evaluator = ReferenceEvaluator(str(made) if isinstance(made, Path) else made)
    return evaluator.run(None, dict(zip(evaluator.input_names, (x, *more), strict=False)))


def computed(layer: Layer, x: Any) -> Any:
    """Returns a layer's output as numpy computes it, of an input of rank 3 too."""
    result = activated(layer.config, convolved(layer, x if x.ndim == 4 else x[:, :, None]))
    return result if x.ndim == 4 else result[:, :, 0]
