"""Convs of ONNX models on a real server, beside ONNX' own ReferenceEvaluator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import helper

from convserve import cli, importing
from convserve.activations import Activation
from tests.endurance import real_files
from tests.support.onnx_models import conv, model, normalization, reference, statistics, weights, write


def image(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def agree(y, expected, relative=1e-5):
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= relative * np.abs(expected).max()


class ResNet:
    """The first stage of torchvision's ResNet-50, as PyTorch exports it in evaluation, but for fewer channels."""

    def __init__(self):
        self.nodes, self.arrays = [], {}
        stem = self._convolution("conv1", "bn1", "x", 16, 3, 7, stride=2, relu=True)
        pool = helper.make_node(
            "MaxPool", [stem], ["pool"], name="maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        )
        self.nodes.append(pool)
        y, channels = "pool", 16
        for block in range(3):
            y = self._bottleneck(f"layer1.{block}", y, channels)
            channels = 64
        self.model = model(self.nodes, self.arrays, x=("n", 3, "h", "w"), y=(y,), opset=17)

    def _bottleneck(self, name, x, channels):
        y = self._convolution(f"{name}.conv1", f"{name}.bn1", x, 16, channels, 1, relu=True)
        y = self._convolution(f"{name}.conv2", f"{name}.bn2", y, 16, 16, 3, relu=True)
        y = self._convolution(f"{name}.conv3", f"{name}.bn3", y, 64, 16, 1)
        if channels != 64:
            x = self._convolution(f"{name}.downsample.0", f"{name}.downsample.1", x, 64, channels, 1)
        self.nodes += [
            helper.make_node("Add", [y, x], [f"{name}.sum"], name=f"{name}.add"),
            helper.make_node("Relu", [f"{name}.sum"], [f"{name}.y"], name=f"{name}.relu"),
        ]
        return f"{name}.y"

    def _convolution(self, name, normalized, x, filters, channels, size, stride=1, relu=False):
        seed = len(self.nodes)
        self.arrays |= weights(name, filters, channels, size, size, bias=False, seed=seed)
        self.arrays |= statistics(normalized, filters, seed)
        self.nodes += [
            conv(name, x, f"{name}.y", bias=False, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[size // 2] * 4),
            normalization(normalized, f"{name}.y", f"{normalized}.y"),
        ]
        if not relu:
            return f"{normalized}.y"
        self.nodes.append(helper.make_node("Relu", [f"{normalized}.y"], [f"{name}.relu"], name=f"{name}.relu"))
        return f"{name}.relu"


def max_pool(x):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows[:, :, ::2, ::2].max(axis=(4, 5))


def test_the_first_stage_of_a_resnet(tmp_path, client):
    """Folded: each run of convolutions is one call, and only the pooling and the sums are computed here."""
    made = ResNet().model
    imported = importing.read(write(tmp_path / "resnet.onnx", made), prefix="", fold_batch_norm=True)
    layers = imported.layers
    assert len(layers) == 11
    kinds = [each.kind for each in imported.skipped]
    assert sorted(kinds) == ["Add"] * 3 + ["MaxPool"] + ["Relu"] * 3  # the sums', which follow no convolution
    x = image(2, 3, 48, 40)
    (expected,) = reference(made, x)
    y = max_pool(client.convolve([layers["conv1"]], x).output)
    for block in range(3):
        main_path = [layers[f"layer1.{block}.conv{number}"] for number in (1, 2, 3)]
        shortcut = y if block else client.convolve([layers["layer1.0.downsample.0"]], y).output
        y = np.maximum(client.convolve(main_path, y).output + shortcut, 0)
    agree(y, expected)


def test_convolutions_that_are_not_folded_give_the_numbers_between(tmp_path, client):
    made = ResNet().model
    made.graph.output.append(helper.make_tensor_value_info("conv1.y", 1, None))
    layers = importing.read(write(tmp_path / "resnet.onnx", made), prefix="").layers
    x = image(1, 3, 32, 32)
    agree(client.convolve([layers["conv1"]], x).output, reference(made, x)[1])


ACTIVATIONS = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.3}, "HardSigmoid": {"alpha": 1 / 6}, "HardSwish": {}, "Sigmoid": {},
    "Tanh": {}, "Elu": {"alpha": 0.7}, "Selu": {}, "Softplus": {}, "Softsign": {}, "Celu": {"alpha": 0.7},
    "ThresholdedRelu": {"alpha": 0.5}, "Gelu": {}, "Gelu/tanh": {"approximate": "tanh"}, "Mish": {}, "Swish": {},
    "Clip": {},
}  # fmt: skip


def test_activations_are_keras_own_functions(tmp_path, client):
    nodes, arrays = [], weights("c", 4, 3, 1, 1) | {"low": np.float32(0), "high": np.float32(6)}
    for name, attributes in ACTIVATIONS.items():
        kind, _, _ = name.partition("/")
        inputs = [f"{name} in", *(["low", "high"] if kind == "Clip" else [])]
        node = conv("c", "x", f"{name} in")
        node.name = name
        nodes += [node, helper.make_node(kind, inputs, [f"{name} out"], **attributes)]
    outputs = [f"{name} out" for name in ACTIVATIONS]
    made = model(nodes, arrays, y=outputs, opset=24, ir_version=10)
    imported = importing.read(write(tmp_path / "x.onnx", made), prefix="", fold_batch_norm=True)
    assert imported.skipped == []
    x = 3 * image(1, 3, 9, 9)
    linear = Activation.members["linear"]()
    for layer, expected in zip(imported.layers.values(), reference(made, x), strict=True):
        assert layer.config.activation != linear
        agree(client.convolve([layer], x).output, expected, 1e-6)


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"strides": [2, 3], "dilations": [2, 1], "pads": [2, 0, 1, 1]}, (1, 4, 15, 14)),
        ({"strides": [2, 2], "dilations": [2, 2]}, (1, 4, 15, 14)),
        ({"strides": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}, (1, 4, 15, 14)),
        ({"strides": [2, 2], "dilations": [2, 3], "auto_pad": "SAME_LOWER", "group": 2}, (1, 4, 15, 14)),
        ({"strides": [3, 2], "auto_pad": "SAME_LOWER"}, (2, 4, 16, 14)),
        ({"strides": [2], "dilations": [3], "pads": [1, 2]}, (2, 4, 16)),
    ],
)
def test_what_keras_has_no_words_for(tmp_path, client, attributes, shape):
    """Strides and dilation together, and amounts of padding that depend on the image's size."""
    kernel = weights("c", 6, 4 // attributes.get("group", 1), *[3] * (len(shape) - 2))
    made = model([conv("c", **attributes)], kernel, x=shape)
    (layer,) = importing.read(write(tmp_path / "x.onnx", made)).layers.values()
    x = image(*shape)
    y = client.convolve([layer], x if len(shape) == 4 else x[:, :, None]).output
    agree(y if len(shape) == 4 else y[:, :, 0], reference(made, x)[0])


def test_the_command_line_stores_a_models_convs(tmp_path, client, server, capsys):
    path = write(tmp_path / "resnet.onnx", ResNet().model)
    arguments = ["layers", "import", str(path), "--target", server.target, "--prefix", "onnx", "--json"]
    assert cli.main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["imported"]) == 11
    assert answer["imported"][0]["name"] == "onnx/conv1"
    assert {each["kind"] for each in answer["skipped"]} == {"Add", "BatchNormalization", "MaxPool", "Relu"}
    x = image(1, 3, 32, 32)
    stored = client.layer("onnx/conv1")(x)
    own = importing.read(path, prefix="onnx").layers["onnx/conv1"]
    np.testing.assert_array_equal(stored, client.convolve([own], x).output)


@pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file", "ignore:__array__ implementation doesn't accept a copy keyword"
)
def test_the_command_for_packages_models_compares_all_layers(tmp_path, monkeypatch):
    import keras

    pads = {"pads": np.int64([0, 0, 0, 1, 0, 0, 1, 0])}
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        conv("a", "p", "a"),
        normalization("n", "a", "b"),
        helper.make_node("Sigmoid", ["b"], ["y"]),
    ]
    arrays = weights("a", 4, 3, 3, 2) | statistics("n", 4) | pads
    onnx = write(tmp_path / "x.onnx", model(nodes, arrays, opset=13))
    layers = keras.layers
    parts = [layers.SeparableConv2D(4, 3, name="s"), layers.BatchNormalization(), layers.ReLU(), layers.Conv1D(2, 1)]
    parts.insert(3, layers.Reshape((-1, 4)))
    keras.Sequential([keras.Input((9, 9, 3)), *parts]).save(tmp_path / "x.h5")
    for path, count, folded in ((onnx, 1, 3), (tmp_path / "x.h5", 3, 2)):
        found = real_files.examine(path, path.name)
        assert (found.layers, found.folded, found.error) == (count, folded, "")
        assert 0 < found.worst < 1e-5
        assert found.compared == (2 if path is onnx else 4)
    own = real_files._computed
    monkeypatch.setattr(real_files, "_computed", lambda layer, x: own(layer, x) * 1.001)
    assert "differs by" in real_files.examine(onnx, "x.onnx").error
