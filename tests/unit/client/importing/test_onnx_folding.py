"""What surrounds the Convs of an ONNX model and becomes part of them, on request, and what does not."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from convserve import importing
from convserve.activations import Activation
from tests.support.onnx_models import computed, conv, model, normalization, reference, statistics, weights, write

ARRAYS = weights("c", 4, 2, 3, 3) | statistics("n", 4)


def image(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def folded(path, made, **options):
    return importing.read(write(path, made), prefix="", fold_batch_norm=True, **options)


def only_layer(path, made):
    """Returns the only layer of a model all of which became that layer."""
    imported = folded(path, made)
    assert imported.skipped == []
    (layer,) = imported.layers.values()
    return layer


def activation_of(path, kind, opset, arrays=None, **attributes):
    """Returns the activation of a Conv that one operator follows; None if it did not become part of the Conv."""
    inputs = ["c", *(arrays or {})]
    nodes = [conv("c", y="c"), helper.make_node(kind, inputs, ["y"], name="after", **attributes)]
    imported = folded(path, model(nodes, ARRAYS | (arrays or {}), opset=opset))
    assert list(imported.layers) == ["c"]
    return None if imported.skipped else imported.layers["c"].config.activation


ACTIVATIONS = [
    ("Relu", 6, {}, "relu", {}),
    ("Relu", 21, {}, "relu", {}),
    ("LeakyRelu", 6, {}, "leaky_relu", {"negative_slope": 0.01}),
    ("LeakyRelu", 16, {"alpha": 0.5}, "leaky_relu", {"negative_slope": 0.5}),
    ("Clip", 6, {"min": 0.0, "max": 6.0}, "relu6", {}),
    ("Clip", 6, {"min": 0.0, "max": 3.0}, "relu", {"max_value": 3.0}),
    ("Clip", 6, {"min": 0.0}, "relu", {}),
    ("Clip", 6, {}, "linear", {}),
    ("Clip", 6, {"min": -1.0, "max": 1.0}, "hard_tanh", {}),
    ("Clip", 6, {"min": 1.0, "max": 6.0}, None, {}),
    ("Clip", 6, {"min": 0.0, "max": -1.0}, None, {}),
    ("HardSigmoid", 6, {"alpha": 1 / 6}, "hard_sigmoid", {}),
    ("HardSigmoid", 6, {}, None, {}),
    ("HardSwish", 14, {}, "hard_silu", {}),
    ("Sigmoid", 6, {}, "sigmoid", {}),
    ("Tanh", 6, {}, "tanh", {}),
    ("Elu", 6, {"alpha": 0.5}, "elu", {"alpha": 0.5}),
    ("Celu", 12, {"alpha": 0.5}, "celu", {"alpha": 0.5}),
    ("Selu", 6, {}, "selu", {}),
    ("Selu", 6, {"alpha": 1.5}, None, {}),
    ("Softplus", 1, {}, "softplus", {}),
    ("Softsign", 1, {}, "softsign", {}),
    ("ThresholdedRelu", 10, {"alpha": 0.5}, "threshold", {"threshold": 0.5, "default_value": 0.0}),
    ("Gelu", 20, {}, "gelu", {"approximate": False}),
    ("Gelu", 20, {"approximate": "tanh"}, "gelu", {"approximate": True}),
    ("Gelu", 20, {"approximate": "other"}, None, {}),
    ("Mish", 18, {}, "mish", {}),
    ("Swish", 24, {}, "silu", {}),
    ("Swish", 24, {"alpha": 2.0}, None, {}),
    ("Identity", 6, {}, "linear", {}),
    ("Dropout", 10, {}, "linear", {}),
    ("Dropout", 6, {}, None, {}),
    ("Dropout", 6, {"is_test": 1}, "linear", {}),
    ("Softmax", 13, {}, None, {}),
]


@pytest.mark.parametrize(("kind", "opset", "attributes", "name", "parameters"), ACTIVATIONS)
def test_an_activation_is_folded_if_it_is_keras_function(tmp_path, kind, opset, attributes, name, parameters):
    found = activation_of(tmp_path / "x.onnx", kind, opset, **attributes)
    assert found == (None if name is None else Activation.members[name](**parameters))


@pytest.mark.parametrize(
    ("low", "high", "name", "parameters"),
    [
        (0, 6, "relu6", {}), (0, None, "relu", {}), (None, None, "linear", {}), (-1, 1, "hard_tanh", {}),
        (0, 2.5, "relu", {"max_value": 2.5}), (None, 6, None, {}), (0, np.inf, "relu", {}), (np.nan, 6, None, {}),
    ],
)  # fmt: skip
def test_clip_of_later_opsets_has_its_limits_as_inputs(tmp_path, low, high, name, parameters):
    given = {"low": low, "high": high}
    arrays = {key: np.float32(value) for key, value in given.items() if value is not None}
    inputs = ["c", *(key if given[key] is not None else "" for key in given)]
    nodes = [conv("c", y="c"), helper.make_node("Clip", inputs, ["y"])]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS | arrays))
    activation = None if imported.skipped else imported.layers["c"].config.activation
    assert activation == (None if name is None else Activation.members[name](**parameters))


SIGMOID = helper.make_node("Sigmoid", ["c"], ["s"], name="part")
GATES = {
    "silu": [SIGMOID, helper.make_node("Mul", ["c", "s"], ["y"])],
    "silu turned around": [SIGMOID, helper.make_node("Mul", ["s", "c"], ["y"])],
    "hard_silu": [
        helper.make_node("HardSigmoid", ["c"], ["s"], alpha=1 / 6),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ],
    "mish": [
        helper.make_node("Softplus", ["c"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("Mul", ["c", "t"], ["y"]),
    ],
}


@pytest.mark.parametrize("name", GATES)
def test_activations_of_several_operators(tmp_path, name):
    """As PyTorch exports SiLU, Hardswish and Mish."""
    layer = only_layer(tmp_path / "x.onnx", model([conv("c", y="c"), *GATES[name]], ARRAYS))
    assert layer.config.activation == Activation.members[name.partition(" ")[0]]()


def test_gates_that_are_none(tmp_path):
    for nodes, outputs in (
        ([helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["c", "s"], ["y"])], ("y",)),  # another's
        ([SIGMOID, helper.make_node("Mul", ["c", "s"], ["y"])], ("y", "s")),  # returned too
        ([SIGMOID, helper.make_node("Mul", ["c", "s"], ["z"]), helper.make_node("Neg", ["s"], ["y"])], ("y", "z")),
        ([helper.make_node("Mul", ["c", "c"], ["y"])], ("y",)),  # a square
        ([helper.make_node("Tanh", ["c"], ["s"]), helper.make_node("Mul", ["c", "s"], ["y"])], ("y",)),
    ):
        imported = folded(tmp_path / "x.onnx", model([conv("c", y="c"), *nodes], ARRAYS, y=outputs))
        assert imported.layers["c"].config.activation == Activation.members["linear"]()
        assert len(imported.skipped) == len(nodes)


def test_a_gate_that_is_left_is_listed_with_its_parts(tmp_path):
    pool = helper.make_node("MaxPool", ["a"], ["c"], kernel_shape=[2, 2], name="pool")
    imported = folded(tmp_path / "x.onnx", model([conv("c", y="a"), pool, *GATES["silu"]], ARRAYS))
    assert {each.name: each.reason for each in imported.skipped} == {
        "pool": "not a Conv",
        "part": "left as it is: it follows no convolution, but pool (MaxPool)",
        "y": "not a Conv",
    }


def test_limits_that_are_not_constant_stay(tmp_path):
    nodes = [
        conv("c", y="c"),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Clip", ["c", "", "top"], ["y"], name="clip"),
    ]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS))
    assert [each.name for each in imported.skipped] == ["top", "clip"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "Relu", "Tanh"])
def test_batch_normalization_is_folded(tmp_path, bias, activation):
    nodes = [conv("c", y="a", bias=bias), normalization("n", "a", "b" if activation else "y", epsilon=1e-3)]
    if activation:
        nodes.append(helper.make_node(activation, ["b"], ["y"]))
    made = model(nodes, ARRAYS)
    layer, x = only_layer(tmp_path / "x.onnx", made), image(2, 2, 6, 7)
    (expected,) = reference(made, x)
    np.testing.assert_allclose(computed(layer, x), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    plain = importing.read(tmp_path / "x.onnx", prefix="")
    assert plain.layers["c"].config.activation == Activation.members["linear"]()
    assert [each.kind for each in plain.skipped] == ["BatchNormalization", *([activation] if activation else [])]
    assert "fold_batch_norm" in plain.skipped[0].reason


@pytest.mark.parametrize(
    ("opset", "attributes", "is_folded"),
    [
        (1, {"is_test": 1, "consumed_inputs": [0, 0, 0, 0, 0]}, True),
        (6, {"is_test": 1}, True),
        (6, {}, False),  # of the batch, as in training
        (6, {"is_test": 1, "spatial": 0}, False),  # one number a place
        (7, {}, True),
        (8, {"spatial": 0}, False),
        (9, {}, True),
        (14, {}, True),
        (15, {"training_mode": 0}, True),
    ],
)
def test_batch_normalization_of_every_opset(tmp_path, opset, attributes, is_folded):
    nodes = [conv("c", y="a"), normalization("n", "a", "y", **attributes)]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS, opset=opset))
    assert [each.name for each in imported.skipped] == ([] if is_folded else ["n"])


def test_batch_normalization_in_training_is_not_folded(tmp_path):
    node = normalization("n", "a", "y", training_mode=1)
    node.output.extend(["mean", "var"])
    imported = folded(tmp_path / "x.onnx", model([conv("c", y="a"), node], ARRAYS))
    (skipped,) = imported.skipped
    assert skipped.kind == "BatchNormalization"
    assert "as in training" in skipped.reason


def test_arrays_that_do_not_fit_leave_the_conv_as_it_is(tmp_path):
    nodes = [conv("c", y="a"), normalization("n", "a", "y")]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS | statistics("n", 5)))
    assert "4 filters" in imported.skipped[0].reason
    assert not np.any(imported.layers["c"].bias - ARRAYS["c.bias"])


@pytest.mark.parametrize(
    ("opset", "attributes", "arrays", "padding"),
    [
        (1, {"paddings": [0, 0, 1, 2, 0, 0, 3, 4]}, {}, ((1, 3), (2, 4))),
        (2, {"pads": [0, 0, 1, 2, 0, 0, 3, 4]}, {}, ((1, 3), (2, 4))),
        (10, {"pads": [0, 0, 1, 2, 0, 0, 3, 4], "mode": "constant", "value": 0.0}, {}, ((1, 3), (2, 4))),
        (10, {"pads": [0, 0, 1, 2, 0, 0, 3, 4], "value": 1.0}, {}, None),
        (10, {"pads": [0, 0, 1, 2, 0, 0, 3, 4], "mode": "reflect"}, {}, None),
        (10, {"pads": [0, 1, 1, 2, 0, 0, 3, 4]}, {}, None),
        (10, {"pads": [0, 0, -1, 2, 0, 0, 3, 4]}, {}, None),
        (13, {}, {"p": np.int64([0, 0, 1, 2, 0, 0, 3, 4]), "v": np.float32(0)}, ((1, 3), (2, 4))),
        (13, {}, {"p": np.int64([0, 0, 1, 2, 0, 0, 3, 4]), "v": np.float32(1)}, None),
        (18, {}, {"p": np.int64([1, 2]), "v": np.float32(0), "axes": np.int64([-1])}, ((0, 0), (1, 2))),
        (18, {}, {"p": np.int64([1, 2]), "v": np.float32(0), "axes": np.int64([2])}, ((1, 2), (0, 0))),
        (18, {}, {"p": np.int64([1, 2]), "v": np.float32(0), "axes": np.int64([9])}, None),
    ],
)
def test_a_pad_before_a_conv_becomes_its_padding(tmp_path, opset, attributes, arrays, padding):
    nodes = [
        helper.make_node("Pad", ["x", *arrays], ["p0"], name="pad", **attributes),
        conv("c", "p0", pads=[1, 0, 0, 0]),
    ]
    made = model(nodes, ARRAYS | arrays, opset=opset)
    imported = folded(tmp_path / "x.onnx", made)
    assert list(imported.layers) == ["c"]
    if padding is None:
        assert [each.name for each in imported.skipped] == ["pad"]
        return
    assert imported.skipped == []
    (top, bottom), width = padding
    assert imported.layers["c"].config.padding == ((top + 1, bottom), width)
    if opset > 1:
        x = image(1, 2, 5, 6)
        np.testing.assert_allclose(computed(imported.layers["c"], x), reference(made, x)[0], rtol=1e-4, atol=1e-4)


def test_a_chain_of_rank_3_is_folded(tmp_path):
    pads = {"p": np.int64([0, 0, 2, 0, 0, 1])}
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["a"]),
        conv("c", "a", "b", strides=[2]),
        normalization("n", "b", "d"),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    made = model(nodes, weights("c", 4, 2, 3) | statistics("n", 4) | pads, x=("n", 2, "t"))
    layer, x = only_layer(tmp_path / "x.onnx", made), image(2, 2, 9)
    np.testing.assert_allclose(computed(layer, x), reference(made, x)[0], rtol=1e-5, atol=1e-5)


def test_what_others_read_too_is_not_folded(tmp_path):
    """By a second reader, as the model's output, from a subgraph, and by the same reader twice."""
    after = normalization("n", "a", "y")
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["a"], ["z"], name="neg")], "branch", [], [value])
    others = {
        "second": ([helper.make_node("Neg", ["a"], ["z"])], ("y", "z")),
        "output": ([], ("y", "a")),
        "subgraph": ([helper.make_node("If", ["on"], ["z"], then_branch=branch, else_branch=branch)], ("y", "z")),
    }
    for nodes, outputs in others.values():
        made = model([conv("c", y="a"), after, *nodes], ARRAYS | {"on": np.array(True)}, y=outputs)
        imported = folded(tmp_path / "x.onnx", made)
        assert imported.layers["c"].bias.tolist() == ARRAYS["c.bias"].tolist()
        (reason,) = (each.reason for each in imported.skipped if each.name == "n")
        assert "it follows c, whose output" in reason
    twice = helper.make_node("Mul", ["a", "a"], ["y"])
    imported = folded(tmp_path / "x.onnx", model([conv("c", y="a"), twice], ARRAYS))
    assert [each.kind for each in imported.skipped] == ["Mul"]


@pytest.mark.parametrize(("kind", "opset"), [("Mish", 11), ("HardSwish", 11), ("Celu", 9), ("Swish", 21)])
def test_an_operator_that_its_opset_has_not_is_left(tmp_path, kind, opset):
    nodes = [conv("c", y="a"), helper.make_node(kind, ["a"], ["y"], name="n")]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS, opset=opset))
    assert imported.layers["c"].config.activation == Activation.members["linear"]()
    assert imported.skipped == [("n", kind, "left as it is: no Conv2D has it with these parameters")]


def test_what_is_left_says_why(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="first"),
        conv("c", "r", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        normalization("n", "b", "d"),
        helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], name="pool"),
        helper.make_node("Tanh", ["e"], ["y"], name="third"),
    ]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS))
    assert {each.name: each.reason for each in imported.skipped} == {
        "first": "left as it is: it follows no convolution, but the input x",
        "n": "left as it is: the convolution before it has the activation 'relu' already",
        "pool": "not a Conv",
        "third": "left as it is: it follows no convolution, but pool (MaxPool)",
    }


def test_a_node_that_is_called_as_an_input_is_another(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="the input x"),
        conv("c", "x", "a"),
        helper.make_node("Add", ["a", "r"], ["y"]),
    ]
    imported = folded(tmp_path / "x.onnx", model(nodes, ARRAYS))
    assert [(each.name, each.kind) for each in imported.skipped] == [("_the input x", "Relu"), ("y", "Add")]


def test_folding_is_exact_in_subgraphs_and_for_many_in_a_row(tmp_path):
    arrays, nodes, before = {}, [], "x"
    for index, (channels, filters) in enumerate(itertools.pairwise([2, 4, 6, 3])):
        name = f"block{index}"
        arrays |= weights(f"{name}.c", filters, channels, 3, 3, seed=index) | statistics(f"{name}.n", filters, index)
        nodes += [
            conv(f"{name}.c", before, f"{name}a", pads=[1, 1, 1, 1]),
            normalization(f"{name}.n", f"{name}a", f"{name}b"),
            helper.make_node("Relu", [f"{name}b"], [f"{name}y"]),
        ]
        before = f"{name}y"
    made = model(nodes, arrays, y=(before,))
    imported, x = folded(tmp_path / "x.onnx", made), image(1, 2, 8, 8)
    assert imported.skipped == []
    (expected,) = reference(made, x)
    for layer in imported.layers.values():
        x = computed(layer, x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
