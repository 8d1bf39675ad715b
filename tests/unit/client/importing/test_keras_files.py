"""Keras' files, read without Keras: which layers are found, under which names, with whose weights."""

import json

import h5py
import ml_dtypes
import numpy as np
import pytest

import convserve
from convserve import activations, importing
from tests.support.keras.archives import BIAS, KERNEL, WEIGHTS, conv2d, model, weights_file, write_archive, write_h5

LAMBDA = {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "lambda"}, "registered_name": None}
ADD = {"module": "keras.src.ops.numpy", "class_name": "Conv2D", "config": {"name": "op"}, "registered_name": "Conv2D"}


def reasons(imported):
    """Returns why things were skipped, by name."""
    return {each.name: each.reason for each in imported.skipped}


def test_layers_go_by_the_models_name_and_their_own(tmp_path):
    path = write_archive(tmp_path / "x.keras", model("net", conv2d("stem", strides=2, activation="relu"), LAMBDA))
    imported = importing.read(path)
    (layer,) = imported.layers.values()
    assert list(imported.layers) == ["net/stem"]
    assert layer.config == convserve.Conv2D(
        2, 3, 2, data_format="channels_last", activation="relu", name="stem", dtype="float32"
    )
    np.testing.assert_array_equal(layer.kernel, KERNEL)
    np.testing.assert_array_equal(layer.bias, BIAS)
    assert imported.skipped == [importing.Skipped("net/lambda", "Lambda", "not a Conv2D")]
    assert list(importing.read(path, prefix="").layers) == ["stem"]
    assert list(importing.read(str(path), prefix="vision/v2/").layers) == ["vision/v2/stem"]


def test_classes_are_numbered_within_each_model_and_operations_take_no_number(tmp_path):
    inner = model("inner", conv2d("a"), kind="Sequential")
    outer = model("outer", ADD, conv2d("a"), inner, conv2d("b"), model("inner2", inner, conv2d("c")))
    places = ["layers/conv2d", "layers/sequential/layers/conv2d", "layers/conv2d_1",
              "layers/functional/layers/sequential/layers/conv2d", "layers/functional/layers/conv2d"]  # fmt: skip
    groups = {place: {"0": KERNEL + number, "1": BIAS} for number, place in enumerate(places)}
    imported = importing.read(write_archive(tmp_path / "x.keras", outer, weights_file(groups)))
    assert {name: int(layer.kernel[0, 0, 0, 0]) for name, layer in imported.layers.items()} == {
        "outer/a": 0, "outer/inner/a": 1, "outer/b": 2, "outer/inner2/inner/a": 3, "outer/inner2/c": 4
    }  # fmt: skip
    assert reasons(imported) == {"outer/op": "not a Conv2D"}


def test_a_class_that_calls_itself_conv2d_is_skipped_and_takes_its_number(tmp_path):
    foreign = [
        conv2d("f") | {"module": "mine.layers"},
        conv2d("g") | {"registered_name": "mine>Conv2D"},
        conv2d("h") | {"module": "keras_hub.src.layers", "registered_name": "keras_hub>Conv2D"},
    ]
    weights = weights_file({"layers/conv2d": WEIGHTS, "layers/conv2d_3": {"0": KERNEL + 1, "1": BIAS}})
    imported = importing.read(write_archive(tmp_path / "x.keras", model("m", *foreign, conv2d("own")), weights))
    assert list(imported.layers) == ["m/own"]
    assert imported.layers["m/own"].kernel[0, 0, 0, 0] == 1
    assert all("class that calls itself Conv2D" in reason for reason in reasons(imported).values())
    assert "'mine.layers'" in reasons(imported)["m/f"]


def test_names_beside_the_weights_are_compared(tmp_path):
    weights = weights_file({"layers/conv2d": WEIGHTS}, {"layers/conv2d": "another"})
    imported = importing.read(write_archive(tmp_path / "x.keras", model("m", conv2d("own")), weights))
    assert not imported.layers
    assert reasons(imported) == {"m/own": "the weights at layers/conv2d/vars are those of 'another'"}


def test_a_layer_that_models_share_is_found_under_each_of_its_names(tmp_path):
    shared = conv2d("s") | {"shared_object_id": 7}
    config = model("m", shared, model("n", shared), conv2d("s2") | {"shared_object_id": 8})
    imported = importing.read(write_archive(tmp_path / "x.keras", config))
    assert list(imported.layers) == ["m/s", "m/n/s"]
    assert imported.layers["m/s"].digest == imported.layers["m/n/s"].digest
    assert "no weights for it" in reasons(imported)["m/s2"]
    assert "one with a layer before it" in reasons(imported)["m/s2"]


def test_a_model_that_models_share_is_found_under_each_of_its_names(tmp_path):
    shared = model("s", conv2d("a"), model("t", conv2d("a"))) | {"shared_object_id": 7}
    another = model("s", conv2d("a"), model("t", conv2d("a"))) | {"shared_object_id": 8}
    inner, deeper = "layers/functional/layers/conv2d", "layers/functional/layers/functional/layers/conv2d"
    weights = weights_file({inner: WEIGHTS, deeper: {"0": KERNEL + 1, "1": BIAS}})
    config = model("m", shared, model("n", shared, another))
    imported = importing.read(write_archive(tmp_path / "x.keras", config, weights))
    assert {name: int(layer.kernel[0, 0, 0, 0]) for name, layer in imported.layers.items()} == {
        "m/s/a": 0, "m/s/t/a": 1, "m/n/s/a": 0, "m/n/s/t/a": 1
    }  # fmt: skip
    assert [each.name for each in imported.skipped] == ["m/n/s/a", "m/n/s/t/a"]  # those of the other model


def test_wrappers_and_custom_models_are_skipped_with_the_reason(tmp_path):
    wrapper = {"module": "keras.layers", "class_name": "TimeDistributed", "config": {"name": "t", "layer": conv2d("c")}}
    own = {"module": "mine", "class_name": "Backbone", "config": {"name": "b"}, "registered_name": "Backbone"}
    imported = importing.read(write_archive(tmp_path / "x.keras", model("m", wrapper, own)))
    assert "around 'Conv2D'" in reasons(imported)["m/t"]
    assert reasons(imported)["m/b"] == "custom ('mine') class"
    custom = {"module": "mine", "class_name": "Net", "config": {"layers": [conv2d("c")]}, "registered_name": "mine>Net"}
    imported = importing.read(write_archive(tmp_path / "y.keras", custom))
    assert imported.layers == {}
    assert imported.skipped == [importing.Skipped("y", "Net", "custom ('mine') model")]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ({"class_name": "LeakyReLU", "config": {"alpha": 0.1}}, activations.LeakyReLU(0.1)),  # Keras 2's word
        ({"class_name": "LeakyReLU", "config": {"negative_slope": 0.4}}, activations.LeakyReLU(0.4)),
        ({"class_name": "LeakyReLU", "config": {}}, activations.LeakyReLU(0.3)),  # the layer's default
        ({"class_name": "ReLU", "config": {"max_value": 6.0, "name": "r"}}, activations.ReLU(max_value=6.0)),
        (None, activations.Activation.members["linear"]()),
    ],
)
def test_activations_are_those_of_the_file(tmp_path, activation, expected):
    path = write_archive(tmp_path / "x.keras", model("m", conv2d("c", activation=activation)))
    assert importing.read(path).layers["m/c"].config.activation == expected


@pytest.mark.parametrize(
    "config",
    [
        {"activation": {"class_name": "function", "config": "mine", "module": "builtins"}},
        {"activation": {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}},
        {"activation": {"value": ["4wAAAA==", None, None]}},
        {"kernel_regularizer": {"class_name": "L2", "config": {}, "module": "mine", "registered_name": "mine>L2"}},
        {"dtype": {"class_name": "DTypePolicy", "config": "float32"}},
        {"dtype": "int8_from_float32"},
        {"filters": 0},
        {"filters": {"a": 1}},
        {"kernel_size": "99"},
        {"padding": "causal"},
        {"more": 1},
    ],
)
def test_a_conv2d_that_has_no_counterpart_is_skipped_with_the_reason(tmp_path, config):
    imported = importing.read(write_archive(tmp_path / "x.keras", model("m", conv2d("c", **config), LAMBDA)))
    assert imported.layers == {}
    field = "config" if "more" in config else next(iter(config))
    assert reasons(imported)["m/c"].startswith(f"{field}: Expected ")


def test_what_drew_the_weights_is_no_obstacle(tmp_path):
    own = {"class_name": "Mine", "config": {}, "module": "mine", "registered_name": "mine>Mine"}
    path = write_archive(tmp_path / "x.keras", model("m", conv2d("c", kernel_initializer=own, padding="same")))
    assert importing.read(path).layers["m/c"].config.padding == "same"


def test_weights_that_do_not_fit_are_refused_under_the_layers_name(tmp_path):
    path = write_archive(tmp_path / "x.keras", model("m", model("n", conv2d("c", filters=3))), weights_file(
        {"layers/functional/layers/conv2d": WEIGHTS}))  # fmt: skip
    with pytest.raises(convserve.InvalidWeightsError) as caught:
        importing.read(path)
    assert caught.value.violations[0].field == "n/c.kernel"
    path = write_archive(tmp_path / "y.keras", model("m", conv2d("c")), weights_file({"layers/conv2d": {"0": KERNEL}}))
    with pytest.raises(convserve.InvalidWeightsError, match=r"c\.bias: Expected a bias"):
        importing.read(path)


def test_bfloat16_is_read_as_both_formats_have_it(tmp_path):
    kernel = (KERNEL / 7).astype(ml_dtypes.bfloat16)
    config = model("m", conv2d("c", dtype="bfloat16", use_bias=False))
    write_archive(tmp_path / "x.keras", config, weights_file({"layers/conv2d": {"0": kernel}}))
    write_h5(tmp_path / "x.h5", config, {"c": {"c/kernel:0": kernel}})
    for name in ("x.keras", "x.h5"):
        layer = importing.read(tmp_path / name).layers["m/c"]
        assert layer.kernel.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(layer.kernel, kernel)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_other_types_of_numbers_become_the_layers_own(tmp_path, dtype):
    weights = weights_file({"layers/conv2d": {"0": KERNEL.astype(dtype), "1": BIAS}})
    layer = importing.read(write_archive(tmp_path / "x.keras", model("m", conv2d("c")), weights)).layers["m/c"]
    assert layer.kernel.dtype == np.float32
    np.testing.assert_array_equal(layer.kernel, KERNEL)


# .h5 files


@pytest.mark.parametrize("names", [("c/kernel:0", "c/bias:0"), ("c/kernel", "c/bias"), ("c_1/kernel:0", "c_1/bias:0")])
def test_the_group_of_a_layer_has_its_weights_whatever_they_are_called(tmp_path, names):
    path = write_h5(tmp_path / "x.h5", model("m", conv2d("c")), {"c": dict(zip(names, (KERNEL, BIAS), strict=True))})
    layer = importing.read(path).layers["m/c"]
    np.testing.assert_array_equal(layer.kernel, KERNEL)
    np.testing.assert_array_equal(layer.bias, BIAS)


def test_layers_of_a_nested_model_are_told_apart_by_their_names(tmp_path):
    nested = model("n", model("p", conv2d("a")), model("q", conv2d("a"), conv2d("b", use_bias=False)))
    arrays = {"p/a/kernel": KERNEL, "p/a/bias": BIAS, "m/n/q/a/kernel": KERNEL + 1, "m/n/q/a/bias": BIAS,
              "b/kernel": KERNEL + 2}  # fmt: skip
    layers = importing.read(write_h5(tmp_path / "x.h5", model("m", nested), {"n": arrays})).layers
    assert {name: int(layer.kernel[0, 0, 0, 0]) for name, layer in layers.items()} == {
        "m/n/p/a": 0, "m/n/q/a": 1, "m/n/q/b": 2
    }  # fmt: skip


def test_weights_that_names_do_not_tell_apart_are_not_guessed(tmp_path):
    nested = model("n", model("p", conv2d("a")), model("q", conv2d("a")))
    arrays = {"a/kernel:0": KERNEL, "a/bias:0": BIAS, "old/kernel:0": KERNEL + 1, "old/bias:0": BIAS}
    imported = importing.read(write_h5(tmp_path / "x.h5", model("m", nested), {"n": arrays}))
    assert not imported.layers
    assert set(reasons(imported).values()) == {
        "the file does not tell its weights from another's: save the model as .keras"
    }
    lora = model("m", conv2d("c", lora_rank=2))
    imported = importing.read(write_h5(tmp_path / "y.h5", lora, {"c": {"c/kernel": KERNEL, "c/bias": BIAS}}))
    assert "LoRA" in reasons(imported)["m/c"]


def test_a_long_list_of_names_is_in_parts(tmp_path):
    path = write_h5(tmp_path / "x.h5", model("m", model("n", conv2d("a"))), {"n": {"a/kernel": KERNEL, "a/bias": BIAS}})
    with h5py.File(path, "a") as opened:
        attributes = opened["model_weights/n"].attrs
        names = list(attributes["weight_names"])
        del attributes["weight_names"]
        attributes["weight_names0"], attributes["weight_names1"] = names[:1], names[1:]
    assert list(importing.read(path).layers) == ["m/n/a"]


def test_the_oldest_form_of_a_sequential_is_a_list(tmp_path):
    old = {"class_name": "Sequential", "config": [{"class_name": "Conv2D", "config": conv2d("c")["config"]}]}
    path = write_h5(tmp_path / "old.h5", old, {"c": {"c/kernel:0": KERNEL, "c/bias:0": BIAS}})
    assert list(importing.read(path).layers) == ["old/c"]


def test_names_with_slashes_are_kept(tmp_path):
    path = write_h5(tmp_path / "x.h5", model("m", conv2d("block/c")), {
        "block/c": {"block/c/kernel:0": KERNEL, "block/c/bias:0": BIAS}})  # fmt: skip
    layer = importing.read(path).layers["m/block/c"]
    assert layer.config.name is None  # Keras 3 allows none in a layer's own name


def test_weights_alone_are_no_model(tmp_path):
    (tmp_path / "x.h5").write_bytes(weights_file({"layers/conv2d": WEIGHTS}))
    with pytest.raises(convserve.InvalidRequestError, match=r"Expected a whole model.*Received.*weights alone"):
        importing.read(tmp_path / "x.h5")


@pytest.mark.parametrize("config", [[], "x", 1, {"class_name": 3}, {"layers": []}, {}])
def test_another_configuration_is_no_model(tmp_path, config):
    path = write_archive(tmp_path / "x.keras", json.dumps(config).encode())
    with pytest.raises(convserve.InvalidRequestError, match=r"file: Expected .* Received"):
        importing.read(path)
