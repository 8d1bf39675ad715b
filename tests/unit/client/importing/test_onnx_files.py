"""Convs out of ONNX files: what each computes is what ONNX' own ReferenceEvaluator computes."""

import itertools
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import _NodeTestCases
from onnx.backend.test.case.node import conv as conv_cases  # which collects its cases when it is imported
from onnx.backend.test.loader import load_model_tests

import convserve
from convserve import importing
from convserve.importing.onnx_models.operators import NEWEST
from tests.support.onnx_models import computed, conv, model, reference, weights, write

# ONNX' own cases are made of numbers that overflow here and there.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def image(*shape, dtype="float32"):
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


def only_layer(path, **options):
    """Returns the only layer of a file in which nothing is skipped."""
    imported = importing.read(path, **options)
    assert imported.skipped == []
    (layer,) = imported.layers.values()
    return layer


def reasons(path, **options):
    """Returns why what is skipped is skipped, by name."""
    return {each.name: each.reason for each in importing.read(path, prefix="", **options).skipped}


def agree(path, made, x, rtol=1e-5):
    """Compares the only layer of a model with the model."""
    write(path, made)
    layer = only_layer(path)
    (expected,) = reference(made, x)
    y = computed(layer, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    return layer


# ONNX' own tests


def node_cases():
    cases = [case for case in _NodeTestCases if any(node.op_type == "Conv" for node in case.model.graph.node)]
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.mark.parametrize("as_constant_nodes", [False, True])
@pytest.mark.parametrize("case", node_cases())
def test_onnx_own_conv_node_tests(tmp_path, case, as_constant_nodes):
    """Its Convs read their weights as inputs; here those are constants, as they are in models."""
    made = onnx.ModelProto()
    made.CopyFrom(case.model)
    names = list(made.graph.node[0].input)
    ((given, expected),) = case.data_sets
    for name, array in zip(names[1:], given[1:], strict=True):
        tensor = numpy_helper.from_array(array, name)
        if as_constant_nodes:
            made.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        else:
            made.graph.initializer.append(tensor)
    for value in list(made.graph.input)[1:] if as_constant_nodes else ():
        made.graph.input.remove(value)
    layer = only_layer(write(tmp_path / "x.onnx", made))
    np.testing.assert_allclose(computed(layer, given[0]), expected[0], rtol=1e-6)


def test_there_are_such_node_tests():
    assert len(node_cases()) == 6
    assert conv_cases.Conv


def converted_cases():
    cases = [case for kind in ("pytorch-converted", "pytorch-operator") for case in load_model_tests(kind=kind)]
    return [pytest.param(case, id=case.name) for case in cases if "conv" in case.name.lower()]


@pytest.mark.parametrize("case", converted_cases())
def test_convs_that_pytorch_exported_of_old(tmp_path, case):
    """Models of ONNX' own tests, of the first versions of the format."""
    folder = next(path for path in (onnx_folder(case),) if path.is_dir())
    made = onnx.load(folder / "model.onnx")
    imported = importing.read(folder / "model.onnx")
    convs = [node for node in made.graph.node if node.op_type == "Conv"]
    x, expected = (
        numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0" / f"{name}_0.pb"))
        for name in ("input", "output")
    )
    if not convs or x.ndim == 5:
        assert imported.layers == {}
        assert len(imported.skipped) == 1
        assert {each.reason for each in imported.skipped} <= {
            "a transposed convolution, which no Conv2D computes",
            "a Conv of rank 5: a Conv2D is of rank 4, and may stand for one of rank 3",
        }
        return
    (layer,) = imported.layers.values()
    np.testing.assert_allclose(computed(layer, x), expected, rtol=1e-3, atol=1e-5)


def onnx_folder(case):
    from pathlib import Path

    return Path(case.model_dir)


def test_there_are_many_such_models():
    assert len(converted_cases()) >= 25


# Geometry


@pytest.mark.parametrize("auto_pad", [None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("strides", "dilations", "group"), [((1, 1), (1, 1), 1), ((2, 3), (1, 1), 2), ((1, 1), (2, 3), 4)]
)
def test_padding_strides_dilations_and_groups(tmp_path, auto_pad, strides, dilations, group):
    attributes = {} if auto_pad is None else {"auto_pad": auto_pad}
    if auto_pad in (None, "NOTSET"):
        attributes["pads"] = [1, 0, 2, 3]
    node = conv("c", strides=strides, dilations=dilations, group=group, **attributes)
    for size in itertools.product((11, 12), (13, 16)):
        made = model([node], weights("c", 8, 4 // group, 3, 2), x=("n", 4, *size))
        agree(tmp_path / "x.onnx", made, image(2, 4, *size))


@pytest.mark.parametrize("auto_pad", [None, "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3)])
def test_a_conv_of_rank_3_is_one_of_height_1(tmp_path, auto_pad, stride, dilation):
    attributes = {"pads": [2, 1]} if auto_pad is None else {"auto_pad": auto_pad}
    node = conv("c", strides=[stride], dilations=[dilation], group=2, **attributes)
    layer = agree(tmp_path / "x.onnx", model([node], weights("c", 6, 2, 4), x=("n", 4, 15)), image(2, 4, 15))
    assert layer.kernel.shape == (1, 4, 2, 6)


def test_attributes_that_are_left_out_are_onnx_own(tmp_path):
    layer = agree(tmp_path / "x.onnx", model([conv("c", bias=False)], weights("c", 3, 2, 1, 5)), image(1, 2, 6, 7))
    assert layer.config == convserve.Conv2D(3, (1, 5), use_bias=False, data_format="channels_first", dtype="float32")


def test_words_of_keras_stand_where_they_mean_the_same(tmp_path):
    padding = {}
    for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        made = model([conv("c", auto_pad=auto_pad)], weights("c", 3, 2, 2, 5))
        padding[auto_pad] = agree(tmp_path / "x.onnx", made, image(1, 2, 6, 7)).config.padding
    assert padding == {"SAME_UPPER": "same", "SAME_LOWER": ((1, 0), (2, 2)), "VALID": "valid"}
    made = model([conv("c", pads=[0, 0, 0, 0])], weights("c", 3, 2, 2, 5))
    assert agree(tmp_path / "x.onnx", made, image(1, 2, 6, 7)).config.padding == "valid"


def test_the_size_that_same_lower_needs_is_looked_up_or_inferred(tmp_path):
    arrays = weights("a", 4, 2, 3, 3) | weights("b", 4, 4, 3, 3)
    nodes = [
        conv("a", y="a", pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", "p", strides=[2, 2], auto_pad="SAME_LOWER"),
    ]
    x = image(1, 2, 14, 20)
    inferred = model(nodes, arrays, x=("n", 2, 14, 20))
    said = model(nodes, arrays, value_info=[helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 4, 7, 10])])
    for made in (inferred, said):
        imported = importing.read(write(tmp_path / "x.onnx", made), prefix="")
        assert imported.layers["b"].config.padding == ((1, 1), (1, 0))
        p = computed(imported.layers["a"], x).reshape(1, 4, 7, 2, 10, 2).max(axis=(3, 5))
        np.testing.assert_allclose(computed(imported.layers["b"], p), reference(made, x)[0], rtol=1e-4, atol=1e-4)
    unknown = reasons(write(tmp_path / "x.onnx", model(nodes, arrays)))["b"]
    assert "auto_pad=SAME_LOWER with strides=(2, 2) pads by the image's size, which the file leaves open" in unknown
    assert "onnx.tools.update_model_dims" in unknown


# Weights


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_layer_has_the_dtype_of_its_weights(tmp_path, dtype, raw):
    arrays = weights("c", 3, 2, 2, 2)
    tensors = {
        name: onnx.helper.make_tensor(name, getattr(TensorProto, dtype.replace("float64", "double").upper().replace(
            "FLOAT32", "FLOAT")), array.shape, array.ravel())
        for name, array in arrays.items()
    }  # fmt: skip
    if raw:
        tensors = {name: numpy_helper.from_array(numpy_helper.to_array(each), name) for name, each in tensors.items()}
    layer = only_layer(write(tmp_path / "x.onnx", model([conv("c")], tensors)))
    assert layer.config.dtype == layer.kernel.dtype.name == layer.bias.dtype.name == dtype
    own = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    np.testing.assert_array_equal(layer.kernel, own["c.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(layer.bias, own["c.bias"])


def test_weights_by_way_of_constants_and_identities(tmp_path):
    arrays = weights("c", 3, 2, 2, 2)
    kernel = numpy_helper.from_array(arrays["c.weight"])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=kernel),
        helper.make_node("Identity", ["k"], ["k2"]),
        helper.make_node("Identity", ["k2"], ["c.weight"]),
        helper.make_node("Constant", [], ["c.bias"], value_floats=arrays["c.bias"].tolist()),
        conv("c"),
    ]
    agree(tmp_path / "x.onnx", model(nodes, {}), image(1, 2, 4, 4))


def test_two_convs_may_share_weights(tmp_path):
    nodes = [conv("c", y="a"), conv("c", "a")]
    nodes[0].name, nodes[1].name = "first", "second"
    layers = importing.read(write(tmp_path / "m.onnx", model(nodes, weights("c", 2, 2, 3, 3)))).layers
    assert list(layers) == ["m/first", "m/second"]
    assert layers["m/first"].digest == layers["m/second"].digest


@pytest.mark.parametrize("names", [["one.bin"], ["sub/a.bin", "sub/b.bin"]])
def test_external_data_beside_the_model(tmp_path, names):
    arrays = weights("c", 4, 2, 3, 3)
    made = model([conv("c")], arrays)
    x = image(1, 2, 5, 5)
    (expected,) = reference(made, x)
    (tmp_path / "sub").mkdir()
    offsets = dict.fromkeys(names, 0)
    for tensor, name in zip(made.graph.initializer, names * 2, strict=False):
        data = tensor.raw_data
        with (tmp_path / name).open("ab") as opened:
            opened.write(data)
        onnx.external_data_helper.set_external_data(tensor, name, offsets[name], len(data))
        tensor.ClearField("raw_data")
        offsets[name] += len(data)
    path = write(tmp_path / "x.onnx", made)
    np.testing.assert_allclose(computed(only_layer(path), x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(expected, reference(path, x)[0])


def test_weights_that_are_not_constant_are_skipped_with_what_they_are(tmp_path):
    arrays = weights("c", 3, 2, 2, 2)
    quantized = {"q": np.ones((3, 2, 2, 2), np.int8), "scale": np.float32(0.5)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Transpose", ["c.weight"], ["t"], name="turn"),
        *(helper.make_node("Conv", ["x", kernel], [f"y{kernel}"], name=f"by_{kernel}") for kernel in ("w2", "t", "x")),
        helper.make_node("Conv", ["x", "c.weight", "w"], ["yb"], name="biased"),
        helper.make_node("Conv", ["x", "nowhere"], ["yn"], name="by_none"),
        conv("c"),
    ]
    path = write(tmp_path / "x.onnx", model(nodes, arrays | quantized))
    assert list(importing.read(path, prefix="").layers) == ["c"]
    found = reasons(path)
    assert found["by_w2"] == (
        "its kernel is quantized (DequantizeLinear computes it): import the model as it was before"
    )
    assert found["by_t"].startswith("its kernel is computed by turn (Transpose): save the model with its constants")
    assert found["by_x"] == "its kernel is an input of the graph, so that every run has its own"
    assert found["biased"].startswith("its bias is quantized")
    assert found["by_none"] == "its kernel is nowhere in the file"


# What else there is in a model


def test_what_is_no_conv_is_listed_once_in_order(tmp_path):
    arrays = weights("c", 2, 2, 3, 3) | {"s": np.float32([2, 2])}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="/first/Relu"),
        helper.make_node("ConvTranspose", ["r", "c.weight"], ["t"]),
        conv("c", "t", "m"),
        helper.make_node("FusedConv", ["m", "c.weight"], ["f"], name="fused", domain="com.microsoft"),
        helper.make_node("Conv", ["f", "c.weight"], ["o"], name="other", domain="custom"),
        helper.make_node("Mul", ["o", "s"], ["y"]),
    ]
    imported = importing.read(write(tmp_path / "net.v2.onnx", model(nodes, arrays)))
    assert list(imported.layers) == ["net.v2/c"]
    assert [(each.name, each.kind) for each in imported.skipped] == [
        ("net.v2/first/Relu", "Relu"), ("net.v2/t", "ConvTranspose"), ("net.v2/fused", "com.microsoft.FusedConv"),
        ("net.v2/other", "custom.Conv"), ("net.v2/y", "Mul"),
    ]  # fmt: skip
    assert imported.skipped[1].reason == "a transposed convolution, which no Conv2D computes"
    assert imported.skipped[3].reason == imported.skipped[4].reason == "not a Conv"


def test_names_are_the_nodes_own_or_their_outputs_and_unique(tmp_path):
    arrays = weights("c", 2, 2, 1, 1)
    nodes = [conv("c", "x", "a"), conv("c", "a", "b"), conv("c", "b", "/d:0/e"), conv("c", "/d:0/e", "y")]
    nodes[0].name = nodes[1].name = nodes[3].name = "same"
    nodes[2].name = ""
    layers = importing.read(write(tmp_path / "x.onnx", model(nodes, arrays)), prefix="m").layers
    assert list(layers) == ["m/same", "m/b", "m/d_0/e", "m/y"]


def test_convs_in_subgraphs_read_weights_around_them(tmp_path):
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inner = weights("d", 2, 2, 1, 1)
    tensors = [numpy_helper.from_array(array, name) for name, array in inner.items()]
    then = helper.make_graph([conv("c")], "then", [], [value])
    other = helper.make_graph([conv("d")], "else", [], [value], tensors)
    nodes = [
        helper.make_node("Constant", [], ["on"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["on"], ["y"], name="choice", then_branch=then, else_branch=other),
    ]
    path = write(tmp_path / "x.onnx", model(nodes, weights("c", 3, 2, 1, 1)))
    imported = importing.read(path, prefix="")
    assert sorted(imported.layers) == ["choice/else_branch/d", "choice/then_branch/c"]
    assert [each.kind for each in imported.skipped] == ["If"]
    np.testing.assert_array_equal(
        imported.layers["choice/else_branch/d"].kernel, inner["d.weight"].transpose(2, 3, 1, 0)
    )


def test_functions_of_the_models_own_are_listed(tmp_path):
    opsets = [helper.make_opsetid("", 21)]
    own = helper.make_function("", "Conv", ["X", "W"], ["Y"], [helper.make_node("Relu", ["X"], ["Y"])], opsets)
    block = helper.make_function("my", "Block", ["X", "W"], ["Y"], [conv("c", "X", "Y", bias=False)], opsets)
    arrays = weights("c", 3, 2, 1, 1, bias=False)
    called = helper.make_node("Block", ["x", "c.weight"], ["z"], domain="my", name="block")
    path = write(tmp_path / "x.onnx", model([called], arrays, functions=[block]))
    assert importing.read(path).layers == {}
    assert reasons(path)["Block/c"].startswith("it is in a function: onnx.inliner.inline_local_functions")
    path = write(tmp_path / "x.onnx", model([conv("c", bias=False)], arrays, functions=[own]))
    (skipped,) = importing.read(path).skipped
    assert skipped.kind == "function Conv"


@pytest.mark.parametrize(("opset", "ir_version"), [(1, 1), (6, 3), (11, 6), (17, 8), (22, 10)])
def test_every_opset(tmp_path, opset, ir_version):
    made = model([conv("c", pads=[1, 1, 0, 0])], weights("c", 3, 2, 2, 2), opset=opset, ir_version=ir_version)
    if ir_version < 3:
        del made.opset_import[:]
        for node in made.graph.node:
            for attribute in node.attribute:
                attribute.ClearField("type")
    layer = only_layer(write(tmp_path / "x.onnx", made))
    assert layer.config.padding == ((1, 0), (1, 0))


def test_a_newer_opset_than_the_installed_package_knows_is_refused(tmp_path):
    made = model([conv("c")], weights("c", 3, 2, 2, 2), opset=onnx.defs.onnx_opset_version() + 1)
    with pytest.raises(convserve.InvalidRequestError, match="install a newer onnx"):
        importing.read(write(tmp_path / "x.onnx", made))


def test_the_operators_that_are_known_are_the_installed_packages_newest():
    newest = {kind: onnx.defs.get_schema(kind).since_version for kind in NEWEST}
    assert newest == NEWEST


def test_a_files_parameters_are_its_own(tmp_path):
    path = write(tmp_path / "x.onnx", model([conv("c")], weights("c", 3, 2, 2, 2)))
    with pytest.raises(convserve.InvalidRequestError, match="no parameters"):
        importing.read(path, strides=2)


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "x.onnx", model([conv("c")], weights("c", 3, 2, 2, 2)))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(convserve.MissingDependencyError, match=r"pip install 'convserve\[import\]'"):
        importing.read(path)
