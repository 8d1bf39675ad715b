"""ONNX files that want to harm whoever reads them: each is refused with one clear error, or the layer is skipped."""

import os
import pickle
import tracemalloc
from contextlib import suppress

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import convserve
from convserve import importing
from convserve.importing import untrusted
from convserve.importing.onnx_models import shapes, shapes_program, wire
from tests.support.onnx_models import conv, model, normalization, statistics, weights, write
from tests.support.raw.wire_fields import field
from tests.support.refused_files import refused

ARRAYS = weights("c", 4, 2, 3, 3)
MAX_MEMORY = 200 * 2**20


@pytest.fixture(autouse=True)
def little_memory():
    """Fails a test in which reading took much memory."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_MEMORY


def skipped(path, **options):
    """Returns why the layer "c" is skipped, beside one that is sound."""
    imported = importing.read(path, prefix="", **options)
    assert list(imported.layers) == ["sound"]
    (reason,) = (each.reason for each in imported.skipped if each.name == "c")
    return reason


def beside_a_sound_one(*nodes, arrays=None, **options):
    """Returns a model with some nodes and a Conv that nothing is wrong with."""
    given = weights("sound", 2, 2, 1, 1) | (ARRAYS if arrays is None else arrays)
    return model([conv("sound", y="s"), *nodes], given, **options)


# Files that are none


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "x.onnx"
    whole = model([conv("c")], ARRAYS).SerializeToString()
    for data, match in (
        (b"", "without a graph"),
        (b"<html>not found</html>", ""),
        (pickle.dumps({"a": 1}), "It is a pickle, which would run code: none was run."),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\0" * 1000, ""),
        (whole[: len(whole) // 2], "ends in the middle of a field"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends in the middle"),
        (b"\x3a" + b"\xff" * 20, "more than 64 bits"),
    ):
        path.write_bytes(data)
        refused(path, match)


def test_every_truncation_is_refused(tmp_path):
    path, whole = tmp_path / "x.onnx", model([conv("c")], ARRAYS).SerializeToString()
    for length in range(0, len(whole) - 10, 7):  # the versions of operators, which may be missing, come last
        path.write_bytes(whole[:length])
        refused(path)


def test_bytes_that_are_changed_never_raise_anything_else(tmp_path):
    nodes = [conv("c", y="a", pads=[1, 1, 1, 1]), normalization("n", "a", "b"), helper.make_node("Relu", ["b"], ["y"])]
    whole = model(nodes, weights("c", 2, 2, 1, 1) | statistics("n", 2)).SerializeToString()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        (tmp_path / "x.onnx").write_bytes(data)
        with suppress(convserve.InvalidArgumentError):
            importing.read(tmp_path / "x.onnx", fold_batch_norm=True)


# More than memory


@pytest.mark.parametrize("what", ["nodes", "attributes", "tensors", "strings", "metadata"])
def test_messages_of_two_bytes_are_counted_before_they_become_objects(tmp_path, monkeypatch, what):
    monkeypatch.setattr(untrusted, "_ALWAYS_BYTES", 2**20)
    many = 20_000
    data = {
        "nodes": field(7, field(1, b"") * many),
        "attributes": field(7, field(1, field(5, b"") * many)),
        "tensors": field(7, field(5, b"") * many),
        "strings": field(7, field(1, field(1, b"") * many)),
        "metadata": field(14, b"") * many,
    }[what]
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    budget = untrusted.Budget(path)
    if what == "strings":  # a string takes little: what is left of the budget says that it was counted
        wire.check(data, onnx.ModelProto.DESCRIPTOR, budget)
        assert 8 * len(data) < budget._spent < 12 * len(data)
    else:
        refused(path, "a message of 256 bytes after")


def test_deep_graphs_are_refused(tmp_path):
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)

    def nested(depth):
        graph = helper.make_graph([conv("c")], "g", [], [value])
        for _ in range(depth):
            node = helper.make_node("If", ["x"], ["y"], then_branch=graph)
            graph = helper.make_graph([node], "g", [], [value])
        return write(tmp_path / "x.onnx", model(list(graph.node), ARRAYS))

    assert len(importing.read(nested(10)).layers) == 1
    refused(nested(20), "graphs that are nested at most 16 deep")
    graph = b""
    for _ in range(1000):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "x.onnx").write_bytes(field(7, graph))
    refused(tmp_path / "x.onnx", "graphs that are nested at most 16 deep")
    kind = b""
    for _ in range(1000):
        kind = field(4, field(1, kind))  # a sequence of sequences
    (tmp_path / "x.onnx").write_bytes(field(7, field(11, field(2, kind))))
    refused(tmp_path / "x.onnx", "messages that are nested at most 90 deep")


def test_dimensions_that_are_not_there(tmp_path):
    for dims, match in (
        ((2**40, 2**10, 3, 3), "bytes"),
        ((2**40, 2**20, 3, 3), "elements"),
        ((4, 2, 3, 2**62), "elements"),
        ((0, 2**31, 2**31, 3), "elements"),
        ((-1, 2, 3, 3), "none of them below 0"),
        ((4, 2, 3, -3), "none of them below 0"),
        ((0, 2, 3, 3), ""),
        ((4, 2, 3, 4), "Received 288 bytes"),
        ((1,) * 100, ""),
        ((), "a Conv of rank 0"),
    ):
        tensor = numpy_helper.from_array(ARRAYS["c.weight"], "c.weight")
        del tensor.dims[:]
        tensor.dims.extend(dims)
        path = write(tmp_path / "x.onnx", beside_a_sound_one(conv("c"), arrays=ARRAYS | {"c.weight": tensor}))
        assert match in skipped(path)


def test_a_broken_constant_does_not_stand_in_the_way_of_others(tmp_path):
    broken = helper.make_node("Constant", [], ["c.weight"], name="k", value=1.0)
    path = write(tmp_path / "x.onnx", beside_a_sound_one(broken, conv("c", bias=False), arrays={}))
    assert "is computed by k (Constant)" in skipped(path)


def branches(nodes, name=""):
    """Returns an If whose branches have some nodes."""
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["x"], ["o"], name=name, then_branch=graph, else_branch=graph)


def test_a_long_name_is_not_repeated_for_each_node_in_a_subgraph(tmp_path):
    inner = [helper.make_node("Relu", ["x"], [f"z{number}"]) for number in range(200)]
    path = write(tmp_path / "x.onnx", beside_a_sound_one(branches(inner, "n" * 10**6)))
    imported = importing.read(path, prefix="")
    names = [each.name for each in imported.skipped]
    assert len(set(names)) == len(names) == 401
    assert max(map(len, names)) <= 500


def test_models_made_to_be_slow_are_read_in_time(tmp_path):
    """Each would take minutes or hours if something were gone through again for each of many."""
    chain = [helper.make_node("Identity", [f"i{number}"], [f"i{number + 1}"]) for number in range(3000)]
    ends = [helper.make_node("Conv", ["x", f"i{number}"], [f"z{number}"]) for number in range(3000)]
    constant = helper.make_node("Constant", [], ["k"], value_floats=[1.0] * 10**5)
    readers = [helper.make_node("Add", ["k", "k"], [f"o{number}"]) for number in range(1000)]
    dimensions = TensorProto(name="d", data_type=TensorProto.FLOAT, dims=[2**62] * 100_000)
    strided = conv("c", auto_pad="SAME_LOWER", strides=[2, 2])
    for made in (
        beside_a_sound_one(*chain, branches(ends)),
        beside_a_sound_one(constant, *readers),
        beside_a_sound_one(strided, arrays=ARRAYS | {"d": dimensions}),
    ):
        imported = importing.read(write(tmp_path / "x.onnx", made), prefix="", fold_batch_norm=True)
        assert list(imported.layers) == ["sound"]


def test_one_array_under_many_names_is_counted_each_time(tmp_path):
    arrays = weights("c", 128, 256, 3, 3, bias=False)
    nodes = [helper.make_node("Conv", ["x", "c.weight"], [f"y{number}"]) for number in range(100)]
    refused(write(tmp_path / "x.onnx", model(nodes, arrays)), "Expected a file that unpacks to at most")


def test_models_larger_than_protocol_buffers_take(tmp_path):
    path = tmp_path / "x.onnx"
    with path.open("wb") as opened:
        opened.truncate(2**31)
    refused(path, "save its weights as external data")


# Weights that are none


@pytest.mark.parametrize("number", [TensorProto.INT8, TensorProto.STRING, TensorProto.FLOAT8E4M3FN, 0, 99, -1])
def test_elements_that_no_layer_has(tmp_path, number):
    tensor = numpy_helper.from_array(ARRAYS["c.weight"], "c.weight")
    tensor.data_type = number
    path = write(tmp_path / "x.onnx", beside_a_sound_one(conv("c", bias=False), arrays={"c.weight": tensor}))
    assert "floating-point numbers" in skipped(path)


def test_attributes_that_no_conv_has(tmp_path):
    for attributes, match in (
        ({"strides": [0, 1]}, "strides"),
        ({"strides": [1]}, "strides"),
        ({"strides": [-1, -1], "auto_pad": "SAME_LOWER"}, "strides"),
        ({"dilations": [2**40, 1]}, "dilation_rate"),
        ({"pads": [-1, 0, 0, 0]}, "padding"),
        ({"pads": [1, 1]}, "pads"),
        ({"pads": [2**40] * 4}, "padding"),
        ({"group": 3}, "groups"),
        ({"group": 0}, "groups"),
        ({"kernel_shape": [5, 5]}, "kernel_shape"),
        ({"auto_pad": "SAME"}, "auto_pad"),
        ({"auto_pad": 3}, "auto_pad"),
        ({"strides": "two"}, "strides"),
        ({"group": 1.0}, "group"),
    ):
        path = write(tmp_path / "x.onnx", beside_a_sound_one(conv("c", **attributes)))
        assert match in skipped(path), attributes


def test_inputs_that_are_missing_or_do_not_fit(tmp_path):
    for node, arrays, match in (
        (helper.make_node("Conv", ["x"], ["y"], name="c"), ARRAYS, "no kernel"),
        (helper.make_node("Conv", [], ["y"], name="c"), ARRAYS, "no kernel"),
        (conv("c"), ARRAYS | {"c.bias": np.zeros(5, np.float32)}, "shape (4,)"),
        (conv("c"), ARRAYS | {"c.bias": np.zeros(4, np.float64)}, "float32, as the kernel has"),
    ):
        assert match in skipped(write(tmp_path / "x.onnx", beside_a_sound_one(node, arrays=arrays)))


def test_a_model_in_which_nothing_is_sound_says_what_is_wrong(tmp_path):
    path = write(tmp_path / "x.onnx", model([conv("c")], ARRAYS | {"c.bias": np.zeros(5, np.float32)}))
    with pytest.raises(convserve.InvalidWeightsError, match=r"c\.bias: Expected shape \(4,\)"):
        importing.read(path)


def test_graphs_that_are_none(tmp_path):
    circle = [conv("c", "b", "a"), helper.make_node("Relu", ["a"], ["b"], name="r")]
    refused(write(tmp_path / "x.onnx", model(circle, ARRAYS)), "nodes that read each other")
    itself = [helper.make_node("Identity", ["c.weight"], ["c.weight"]), conv("c")]
    refused(write(tmp_path / "x.onnx", model(itself, {})), "nodes that read each other")
    twice = [conv("c"), helper.make_node("Relu", ["x"], ["y"])]
    refused(write(tmp_path / "x.onnx", model(twice, ARRAYS)), "computes each tensor once")


def test_names_that_are_no_texts(tmp_path):
    """A writer of another encoding; the layer is found all the same."""
    data = model([conv("c", "x", "z"), conv("c", "z", "y")], weights("c", 2, 2, 1, 1)).SerializeToString()
    for name, other in ((b"c.weight", b"\xb5.weight"[:8]), (b"z", b"\xb5")):
        data = data.replace(name, other.ljust(len(name), b"t"))
    (tmp_path / "x.onnx").write_bytes(data)
    assert list(importing.read(tmp_path / "x.onnx", prefix="", fold_batch_norm=True).layers) == ["c", "y"]


@pytest.mark.parametrize("opset", [0, -1])
def test_opsets_that_never_were(tmp_path, opset):
    refused(write(tmp_path / "x.onnx", model([conv("c")], ARRAYS, opset=opset)), "an opset from 1 to")


def test_many_nodes_of_one_name_take_no_longer(tmp_path):
    nodes = [onnx.NodeProto(op_type="Nothing", name="same") for _ in range(3000)]
    imported = importing.read(write(tmp_path / "x.onnx", model([conv("c"), *nodes], ARRAYS)), prefix="")
    assert len({each.name for each in imported.skipped}) == 3000


def test_long_chains_of_identities(tmp_path):
    nodes = [helper.make_node("Identity", [f"k{number}"], [f"k{number + 1}"]) for number in range(3000)]
    nodes.append(helper.make_node("Conv", ["x", "k3000"], ["y"], name="c"))
    made = model(nodes, {"k0": ARRAYS["c.weight"]})
    assert list(importing.read(write(tmp_path / "x.onnx", made), prefix="").layers) == ["c"]


# External data


def external(path, location, data=None, folder=None, **entries):
    """Returns a model whose kernel is said to be in another file."""
    made = model([conv("c", bias=False)], {"c.weight": ARRAYS["c.weight"]})
    (tensor,) = made.graph.initializer
    kernel = tensor.raw_data
    if data is not None or folder is not None:
        (folder or path.parent).mkdir(exist_ok=True)
        ((folder or path.parent) / os.path.basename(location)).write_bytes(kernel if data is None else data)
    onnx.external_data_helper.set_external_data(tensor, location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    return write(path, made)


def test_external_data_outside_of_the_models_folder_is_not_read(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    for location in (
        "../out/w.bin", "a/../../out/w.bin", str(outside / "w.bin"), "/etc/passwd", "..\\out\\w.bin", "C:\\w.bin",
        "\\\\host\\w.bin", "", "..", "a\0b", "c:w.bin",
    ):  # fmt: skip
        path = external(inside / "x.onnx", location, folder=outside if location.endswith("w.bin") else None)
        refused(path, "inside the model's folder")


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    path = external(inside / "x.onnx", "w.bin", folder=inside)
    assert len(importing.read(path).layers) == 1
    outside.mkdir()
    (inside / "w.bin").rename(outside / "w.bin")
    (inside / "w.bin").symlink_to(outside / "w.bin")
    refused(path, "a link that leads out of it")
    (inside / "w.bin").unlink()
    (inside / "w.bin").symlink_to("w.bin")
    refused(path, "external data that can be read")
    (inside / "w.bin").unlink()
    (inside / "sub").symlink_to(outside)
    refused(external(inside / "x.onnx", "sub/w.bin"), "a link that leads out of it")


def test_external_data_that_is_not_there_or_is_no_file(tmp_path):
    refused(external(tmp_path / "x.onnx", "w.bin"), "belong into one folder")
    (tmp_path / "w").mkdir()
    refused(external(tmp_path / "x.onnx", "w"), "which is none")
    os.mkfifo(tmp_path / "pipe")
    refused(external(tmp_path / "x.onnx", "pipe"), "which is none")


def test_external_data_of_other_sizes(tmp_path):
    kernel = ARRAYS["c.weight"].tobytes()
    path = tmp_path / "x.onnx"
    for data, entries, match in (
        (kernel[:-1], {}, "287 bytes"),
        (kernel, {"offset": "4", "length": "288"}, "from 4 on"),
        (kernel, {"offset": "999"}, "0 bytes"),
        (kernel, {"length": str(2**62)}, f"{2**62} bytes"),
    ):
        made = external(path, "w.bin", data, **entries)
        with pytest.raises(convserve.InvalidWeightsError, match=match):
            importing.read(made)
    for entries in ({"offset": "-4"}, {"length": "9" * 30}, {"offset": "0x4"}):
        refused(external(path, "w.bin", kernel, **entries), "offset and length in bytes")


# Inferring shapes happens in a process of its own


def same_lower(shape):
    return model([conv("c", strides=[2, 2], auto_pad="SAME_LOWER")], ARRAYS, x=shape)


def test_inferring_ends_where_it_must(tmp_path, monkeypatch):
    path = write(tmp_path / "x.onnx", same_lower((1, 2, None, 8)))
    for program in ("while True: pass", "import os; os.abort()", "print('{')"):
        own = tmp_path / "program.py"
        own.write_text(program)
        monkeypatch.setattr(shapes, "_PROGRAM", own)
        monkeypatch.setattr(shapes, "_SECONDS", 0.3)
        assert "pads by the image's size" in importing.read(path).skipped[0].reason


def test_weights_do_not_travel_to_where_shapes_are_inferred():
    arrays = weights("c", 64, 64, 3, 3) | {"shape": np.int64([1, 64, 8, 8])}
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(arrays["c.weight"]))
    bare = shapes._without_weights(model([constant, conv("c")], arrays))
    assert [each.name for each in bare.graph.initializer] == ["c.bias", "shape"]
    assert [each.name for each in bare.graph.input] == ["x", "c.weight", "k"]
    assert len(bare.SerializeToString()) < 2000
    assert shapes_program.main
