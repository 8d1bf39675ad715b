"""Convolutions of Keras' files that are not Conv2Ds, and what surrounds them: where weights stand, who follows whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import importing
from convserve.importing.imported import NOT_FOLDED
from tests.support.keras.archives import BIAS, KERNEL, WEIGHTS, conv2d, model, weights_file, write_archive, write_h5
from tests.support.keras.graphs import (
    ARRAYS,
    BETA,
    DEPTHWISE,
    GAMMA,
    MEAN,
    NORMAL,
    POINTWISE,
    VARIANCE,
    X,
    as_keras_2,
    block,
    entry,
    following,
    functional,
    normalization,
    others,
)

SCALE = GAMMA / np.sqrt(VARIANCE + 1)


def archive(tmp_path: Path, config: dict[str, Any], **groups: Any) -> Path:
    weights = weights_file({f"layers/{name}": of for name, of in groups.items()})
    return write_archive(tmp_path / "x.keras", config, weights)


def reasons(imported: importing.Imported) -> dict[str, str]:
    return {each.name: each.reason for each in imported.skipped}


def test_a_block_becomes_one_layer(tmp_path: Path) -> None:
    path = archive(tmp_path, block(), conv2d=WEIGHTS, batch_normalization=NORMAL)
    imported = importing.read(path, fold_batch_norm=True)
    (layer,) = imported.layers.values()
    assert list(imported.layers) == ["m/c"]
    assert layer.config == convserve.Conv2D(
        2, 3, padding=((0, 1), (0, 1)), activation=convserve.activations.ReLU(max_value=6.0), name="c",
        data_format="channels_last", dtype="float32",
    )  # fmt: skip
    np.testing.assert_allclose(layer.kernel, KERNEL * SCALE, rtol=1e-6)
    np.testing.assert_allclose(layer.bias, (BIAS - MEAN) * SCALE + BETA, rtol=1e-6)
    assert reasons(imported) == {"m/x": "not a Conv2D"}
    assert imported.note == ""


def test_without_folding_it_is_said_what_the_layers_lack(tmp_path: Path) -> None:
    path = archive(tmp_path, block(), conv2d=WEIGHTS, batch_normalization=NORMAL)
    imported = importing.read(path)
    np.testing.assert_array_equal(imported.layers["m/c"].kernel, KERNEL)
    assert {name for name, reason in reasons(imported).items() if reason == NOT_FOLDED} == {"m/p", "m/b", "m/r"}
    assert "1 ZeroPadding2D, 1 BatchNormalization, 1 ReLU beside these layers" in imported.note
    assert "other numbers: fold_batch_norm=True (--fold-batch-norm)" in imported.note
    assert imported.note in repr(imported)


def test_what_is_left_is_listed_and_said(tmp_path: Path) -> None:
    path = archive(tmp_path, block(last="b"), conv2d=WEIGHTS, batch_normalization=NORMAL)
    imported = importing.read(path, fold_batch_norm=True)
    assert imported.layers["m/c"].config.activation.keras_name == "linear"
    assert reasons(imported)["m/r"] == "left as it is: it follows b, whose output the model returns too"
    assert "1 ReLU beside these layers" in imported.note
    assert "left as they are" in imported.note


def test_keras_2s_connections(tmp_path: Path) -> None:
    config = functional(
        X, as_keras_2(conv2d("c"), "x"), as_keras_2(normalization("b", axis=[3]), "c"),
        as_keras_2(entry("LeakyReLU", "l", alpha=0.1), "b"), as_keras_2(conv2d("d"), "l"),
        as_keras_2(normalization("e"), "d"),
        # An operation, whose second argument is in its keyword arguments.
        entry("TFOpLambda", "o") | {"inbound_nodes": [["e", 0, 0, {"y": ["d", 0, 0]}]]},
        outputs=[["o", 0, 0]],
    )  # fmt: skip
    groups = {name: {f"{name}/kernel:0": KERNEL, f"{name}/bias:0": BIAS} for name in "cd"}
    arrays = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), NORMAL.values(), strict=True))
    groups |= {name: {f"{name}/{array}:0": value for array, value in arrays.items()} for name in "be"}
    imported = importing.read(write_h5(tmp_path / "x.h5", config, groups), fold_batch_norm=True)
    np.testing.assert_allclose(imported.layers["m/c"].kernel, KERNEL * SCALE, rtol=1e-6)
    assert imported.layers["m/c"].config.activation == convserve.activations.LeakyReLU(0.1)
    np.testing.assert_array_equal(imported.layers["m/d"].kernel, KERNEL)
    assert reasons(imported)["m/e"] == "left as it is: it follows d, whose output others read too"


@pytest.mark.parametrize("flags", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_a_normalization_without_all_its_parts(tmp_path: Path, flags: dict[str, bool]) -> None:
    config = model("m", conv2d("c"), normalization("b", **flags), kind="Sequential")
    given = [part for part, flag in ((GAMMA, "scale"), (BETA, "center")) if flags.get(flag, True)]
    named = dict(zip("0123", [*given, MEAN, VARIANCE], strict=False))
    layer = importing.read(
        archive(tmp_path, config, conv2d=WEIGHTS, batch_normalization=named), fold_batch_norm=True
    ).layers["m/c"]
    scale = (1 if "scale" in flags else GAMMA) / np.sqrt(VARIANCE + 1)
    np.testing.assert_allclose(layer.kernel, KERNEL * scale, rtol=1e-6)
    beta = 0 if "center" in flags else BETA
    np.testing.assert_allclose(layer.bias, (BIAS - MEAN) * scale + beta, rtol=1e-6)
    # Renormalization has further arrays, and one that lacks one is no such layer.
    for wrong in (named | {str(len(named)): MEAN}, {"0": MEAN}):
        path = archive(tmp_path, config, conv2d=WEIGHTS, batch_normalization=wrong)
        imported = importing.read(path, fold_batch_norm=True)
        np.testing.assert_array_equal(imported.layers["m/c"].kernel, KERNEL)
        assert "left as it is: " in reasons(imported)["m/b"]


def test_what_a_nested_model_has_is_folded_inside_it(tmp_path: Path) -> None:
    """However often the model is called; but not what follows it."""
    inner = functional(X, following(conv2d("c"), "x"), normalization("b", "c"), outputs=["b", 0, 0], name="inner")
    config = functional(
        X, following(inner, "x", "inner"), normalization("after", "inner"), following(conv2d("d"), "after"),
        following(inner | {"config": inner["config"] | {"name": "other"}}, "d"), outputs=[["other", 0, 0]],
    )  # fmt: skip
    groups = {
        "functional/layers/conv2d": WEIGHTS, "functional/layers/batch_normalization": NORMAL, "conv2d": WEIGHTS,
        "functional_1/layers/conv2d": WEIGHTS, "functional_1/layers/batch_normalization": NORMAL,
        "batch_normalization": NORMAL,
    }  # fmt: skip
    imported = importing.read(archive(tmp_path, config, **groups), fold_batch_norm=True)
    for name in ("m/inner/c", "m/other/c"):
        np.testing.assert_allclose(imported.layers[name].kernel, KERNEL * SCALE, rtol=1e-6)
    np.testing.assert_array_equal(imported.layers["m/d"].kernel, KERNEL)
    assert set(reasons(imported)) == {"m/x", "m/inner/x", "m/other/x", "m/after"}
    assert "it follows no convolution, but inner (Functional)" in reasons(imported)["m/after"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output_layers": []}, "does not say what the model returns"),
        ({"output_layers": [["elsewhere", 0, 0]]}, "does not say what the model returns"),
        ({"layers": [X, conv2d("c"), normalization("b", "c")]}, "does not say what c follows"),
        ({"layers": [X, following(conv2d("c"), "x"), normalization("b", "y")]}, "does not say what b follows"),
        ({"layers": [X, following(conv2d("c"), "x"), following(conv2d("c"), "x"), normalization("b", "c")]},
         "layers of one model have the same name"),
        ({"layers": [X, following(conv2d("c"), "x") | {"shared_object_id": 7}, normalization("b", "c"),
                     following(conv2d("d"), "x") | {"shared_object_id": 7}]}, "models share d"),
    ],
)  # fmt: skip
def test_where_the_file_does_not_tell_who_reads_whom_nothing_is_folded(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    config = functional(X, following(conv2d("c"), "x"), normalization("b", "c"), outputs=[["b", 0, 0]])
    config["config"] |= change
    path = archive(tmp_path, config, conv2d=WEIGHTS, conv2d_1=WEIGHTS, batch_normalization=NORMAL)
    imported = importing.read(path, fold_batch_norm=True)
    np.testing.assert_array_equal(imported.layers["m/c"].kernel, KERNEL)
    assert reason in reasons(imported)["m/b"]


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("Activation", {"activation": {"class_name": "function", "config": "mine"}}, "no Conv2D has it"),
        ("ReLU", {"max_value": "6"}, "no Conv2D has it"),
        ("BatchNormalization", {"axis": [1, 2]}, "axis: Expected an axis"),
        ("BatchNormalization", {"epsilon": -1}, "epsilon: Expected a number"),
        ("BatchNormalization", {"epsilon": 10**400}, "left as it is: "),
        ("BatchNormalization", {"axis": 1}, "its axis 1 is not that of the convolution's channels, 3"),
        ("BatchNormalization", {"dtype": "float64"}, "it computes in float64, and the convolution in float32"),
        ("BatchNormalization", {"dtype": {"class_name": "DTypePolicy", "config": "x"}}, "left as it is: "),
    ],
)
def test_what_cannot_be_read_is_left_with_the_reason(
    tmp_path: Path, kind: str, config: dict[str, Any], reason: str
) -> None:
    path = archive(
        tmp_path, model("m", conv2d("c"), entry(kind, "b", **config), kind="Sequential"), conv2d=WEIGHTS,
        batch_normalization=NORMAL,
    )  # fmt: skip
    imported = importing.read(path, fold_batch_norm=True)
    np.testing.assert_array_equal(imported.layers["m/c"].kernel, KERNEL)
    assert reason in reasons(imported)["m/b"]


def test_keras_2s_hard_sigmoid_is_another(tmp_path: Path) -> None:
    layers = [conv2d("c"), entry("Activation", "a", activation="hard_sigmoid"), conv2d("d", activation="hard_sigmoid")]
    groups = {name: {f"{name}/kernel:0": KERNEL, f"{name}/bias:0": BIAS} for name in "cd"}
    config = model("m", *layers, kind="Sequential")
    of_keras_2 = write_h5(tmp_path / "2.h5", config | {"keras_version": "2.15.0"}, groups)
    imported = importing.read(of_keras_2, fold_batch_norm=True)
    assert imported.layers["m/c"].config.activation.keras_name == "linear"
    assert "Received Keras 2's hard_sigmoid" in reasons(imported)["m/a"]
    assert "Received Keras 2's hard_sigmoid" in reasons(imported)["m/d"]
    of_keras_3 = write_h5(tmp_path / "3.h5", config | {"keras_version": "3.9.0"}, groups)
    imported = importing.read(of_keras_3, fold_batch_norm=True)
    assert [layer.config.activation.keras_name for layer in imported.layers.values()] == ["hard_sigmoid"] * 2


def called_with(layer: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns an entry of Keras 3 whose call has more arguments than its tensor."""
    (node,) = layer["inbound_nodes"]
    return layer | {"inbound_nodes": [{"args": [*node["args"], *args], "kwargs": kwargs}]}


INNER = functional(X, following(conv2d("c"), "x"), normalization("b", "c"), outputs=["b", 0, 0], name="n")


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([following(conv2d("c"), "x"), called_with(normalization("b", "c"), training=True)], "b"),
        ([following(conv2d("c"), "x"), called_with(normalization("b", "c"), True)], "b"),
        ([as_keras_2(conv2d("c"), "x"),
          normalization("b") | {"name": "b", "inbound_nodes": [[["c", 0, 0, {"training": True}]]]}], "b"),
        ([following(conv2d("c"), "x"), called_with(entry("Dropout", "d", "c", rate=0.5), training=True),
          normalization("b", "d")], "d"),
        ([called_with(following(INNER, "x"), training=True)], "n/b"),
    ],
)  # fmt: skip
def test_what_is_called_for_training_is_not_folded(tmp_path: Path, layers: list[dict[str, Any]], name: str) -> None:
    config = functional(X, *layers, outputs=[[layers[-1]["name"], 0, 0]])
    groups = {"conv2d": WEIGHTS, "batch_normalization": NORMAL}
    groups |= {f"functional/layers/{place}": of for place, of in groups.items()}
    imported = importing.read(archive(tmp_path, config, **groups), fold_batch_norm=True)
    (layer,) = imported.layers.values()
    np.testing.assert_array_equal(layer.kernel, KERNEL)
    expected = "left as it is: it, or a model around it, is called with training=True"
    assert reasons(imported)[f"m/{name}"] == expected
    assert "left as they are" in imported.note


def test_what_is_called_for_inference_is_folded(tmp_path: Path) -> None:
    config = functional(X, called_with(following(INNER, "x"), training=False, mask=None), outputs=[["n", 0, 0]])
    groups = {"functional/layers/conv2d": WEIGHTS, "functional/layers/batch_normalization": NORMAL}
    imported = importing.read(archive(tmp_path, config, **groups), fold_batch_norm=True)
    np.testing.assert_allclose(imported.layers["m/n/c"].kernel, KERNEL * SCALE, rtol=1e-6)


def test_a_class_that_calls_itself_batch_normalization_is_not_folded(tmp_path: Path) -> None:
    config = model("m", conv2d("c"), normalization("b") | {"module": "mine"}, kind="Sequential")
    path = archive(tmp_path, config, conv2d=WEIGHTS, batch_normalization=NORMAL)
    imported = importing.read(path, fold_batch_norm=True)
    np.testing.assert_array_equal(imported.layers["m/c"].kernel, KERNEL)
    assert reasons(imported)["m/b"] == "custom ('mine') class"


# Keras' other convolutions


@pytest.mark.parametrize("suffix", ["keras", "h5", "keras 2"])
def test_all_of_keras_convolutions_are_imported(tmp_path: Path, suffix: str) -> None:
    config = model("m", *others(), kind="Sequential")
    if suffix == "keras":
        places = ("depthwise_conv2d", "separable_conv2d", "conv1d", "separable_conv1d", "depthwise_conv1d")
        groups = {place: dict(zip("012", of.values(), strict=False)) for place, of in zip(places, ARRAYS.values(),
                  strict=True)}  # fmt: skip
        path = archive(tmp_path, config, **groups)
    else:
        old = {"kernel": "depthwise_kernel"} if suffix == "keras 2" else {}
        path = write_h5(tmp_path / "x.h5", config, {
            name: {f"{name}/{old.get(array, array) if name in 'de' else array}:0": value for array, value in of.items()}
            for name, of in ARRAYS.items()
        })  # fmt: skip
    layers = importing.read(path).layers
    assert list(layers) == ["m/d", "m/s/depthwise", "m/s/pointwise", "m/c", "m/t/depthwise", "m/t/pointwise", "m/e"]
    flat = DEPTHWISE.reshape(3, 3, 1, 2)
    for name in ("m/d", "m/s/depthwise"):
        np.testing.assert_array_equal(layers[name].kernel, flat)
        assert layers[name].config.groups == 2
    for name in ("m/t/depthwise", "m/e"):
        np.testing.assert_array_equal(layers[name].kernel, flat[:1])
    np.testing.assert_array_equal(layers["m/s/pointwise"].kernel, POINTWISE)
    np.testing.assert_array_equal(layers["m/s/pointwise"].bias, [7, 8, 9])
    np.testing.assert_array_equal(layers["m/c"].kernel, KERNEL[:1])
    assert layers["m/c"].config.padding == ((0, 0), (2, 0))


def test_what_does_not_fit_is_told_under_the_layers_name(tmp_path: Path) -> None:
    config = model("m", conv2d("c"), *others()[:2], kind="Sequential")
    path = archive(tmp_path, config, conv2d=WEIGHTS, depthwise_conv2d={"0": KERNEL}, separable_conv2d={"0": DEPTHWISE})
    imported = importing.read(path)
    assert list(imported.layers) == ["m/c"]
    assert "d.kernel: Expected shape" in reasons(imported)["m/d"]
    assert "s.weights: Expected depthwise_kernel and pointwise_kernel" in reasons(imported)["m/s"]
    path = archive(tmp_path, config, conv2d=WEIGHTS, depthwise_conv2d={"0": DEPTHWISE, "1": BIAS, "2": BIAS})
    assert "more than a kernel and a bias" in reasons(importing.read(path))["m/d"]
    assert "no weights for it" in reasons(importing.read(path))["m/s"]


def test_a_shared_depthwise_convolution_is_found_under_each_of_its_names(tmp_path: Path) -> None:
    shared = others()[0] | {"shared_object_id": 7}
    path = archive(tmp_path, model("m", shared, model("n", shared)), depthwise_conv2d={"0": DEPTHWISE})
    layers = importing.read(path).layers
    assert list(layers) == ["m/d", "m/n/d"]
    assert layers["m/d"].digest == layers["m/n/d"].digest


def test_what_no_conv2d_computes_says_what_to_do(tmp_path: Path) -> None:
    kinds = ("Conv2DTranspose", "Conv3D", "Dense")
    path = archive(tmp_path, model("m", conv2d("c"), *(entry(kind, kind) for kind in kinds)), conv2d=WEIGHTS)
    said = reasons(importing.read(path))
    assert said["m/Conv2DTranspose"].endswith("compute it locally")
    assert said["m/Conv3D"].endswith("compute it locally")
    assert "Layer(Conv2D(units, 1), kernel[None, None], bias)" in said["m/Dense"]
    assert said["m/Dense"].startswith("not ")  # of which the command line only counts how many there are


def remote(layer: dict[str, Any]) -> dict[str, Any]:
    """Returns what `convserve.keras` makes of an entry."""
    name = f"Remote{layer['class_name']}"
    config = layer["config"] | {"server": "a:1", "timeout": None, "load_with": "import convserve.keras"}
    said = {"module": "convserve.keras", "class_name": name, "registered_name": f"convserve>{name}"}
    return layer | said | {"config": config}


def test_remote_layers_and_chains_are_what_they_stand_for(tmp_path: Path) -> None:
    chain = {
        "module": "convserve.keras",
        "class_name": "RemoteChain",
        "registered_name": "convserve>RemoteChain",
        "config": {"name": "chain", "server": "a:1", "layers": [conv2d("c"), normalization("b"), conv2d("c2")]},
    }
    config = model("m", remote(others()[0]), remote(others()[1]), chain, normalization("after"), kind="Sequential")
    groups = {
        "remote_depthwise_conv2d": {"0": DEPTHWISE}, "batch_normalization": NORMAL,
        "remote_separable_conv2d": dict(zip("012", ARRAYS["s"].values(), strict=True)),
        "remote_chain/layers/conv2d": WEIGHTS, "remote_chain/layers/batch_normalization": NORMAL,
        "remote_chain/layers/conv2d_1": {"0": KERNEL + 1, "1": BIAS},
    }  # fmt: skip
    imported = importing.read(archive(tmp_path, config, **groups), fold_batch_norm=True)
    assert list(imported.layers) == ["m/d", "m/s/depthwise", "m/s/pointwise", "m/chain/c", "m/chain/c2"]
    np.testing.assert_allclose(imported.layers["m/chain/c"].kernel, KERNEL * SCALE, rtol=1e-6)
    np.testing.assert_array_equal(imported.layers["m/chain/c2"].kernel, KERNEL + 1)
    written = {"class_name": "convserve>RemoteDepthwiseConv2D", "config": remote(others()[0])["config"]}
    path = write_h5(tmp_path / "x.h5", model("m", written, kind="Sequential"), {"d": {"d/kernel": DEPTHWISE}})
    assert list(importing.read(path).layers) == ["m/d"]
    foreign = remote(others()[0]) | {"module": "mine"}
    path = write_h5(tmp_path / "y.h5", model("m", foreign, kind="Sequential"), {"d": {"d/kernel": DEPTHWISE}})
    assert reasons(importing.read(path))["m/d"] == "custom ('mine') class"


def test_theanos_kernels_are_turned_over_where_it_is_known_how(tmp_path: Path) -> None:
    config = model("m", others()[2], others()[0], kind="Sequential") | {"backend": "theano", "keras_version": "2.2.4"}
    path = write_h5(tmp_path / "x.h5", config, {
        name: {f"{name}/{array}:0": value for array, value in ARRAYS[name].items()} for name in "cd"})  # fmt: skip
    imported = importing.read(path)
    np.testing.assert_array_equal(imported.layers["m/c"].kernel, KERNEL[0][None, ::-1])
    assert "Theano" in reasons(imported)["m/d"]


def test_arrays_alone_cannot_be_folded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"c.kernel": KERNEL})
    with pytest.raises(convserve.InvalidRequestError, match=r"Expected a whole model \(\.keras, .*arrays only"):
        importing.read(tmp_path / "x.npz", fold_batch_norm=True)


def test_names_made_to_be_repeated_are_refused(tmp_path: Path) -> None:
    """A layer's name has those of the models around it, so that a long one is there once for each layer in them."""
    inner = model("n" * 10**6, *(entry("ReLU", f"r{number}") for number in range(1000)), kind="Sequential")
    with pytest.raises(convserve.InvalidRequestError, match="names of at most 1000 characters"):
        importing.read(archive(tmp_path, model("m", inner, kind="Sequential")))


def test_a_configuration_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    """It is deflated to a thousandth, and its objects take twenty times as much as its text."""
    with pytest.raises(convserve.InvalidRequestError, match="at most 16777216 bytes of JSON"):
        importing.read(archive(tmp_path, model("m", kind="Sequential") | {"x": [[]] * 2**23}))


def test_layers_made_to_have_many_identities_are_refused(tmp_path: Path) -> None:
    """A layer in models that may be shared is told apart by each of them, so that a short one may take much memory."""
    made = model("m", *({"class_name": "A", "config": {}} for _ in range(5000)), kind="Sequential")
    for _ in range(50):
        made = model("m", made | {"shared_object_id": "x" * 50}, kind="Sequential")
    with pytest.raises(convserve.InvalidRequestError, match="at most 200000 layers that models may share"):
        importing.read(archive(tmp_path, made))


def test_models_made_to_be_slow_are_read_in_time(tmp_path: Path) -> None:
    """Each of many models nested in each other returns all layers of its own many times."""
    layers: list[dict[str, Any]] = [X, following(conv2d("c"), "x")]
    inner = functional(*layers, outputs=[["c", 0, 0]] * 20, name="n")
    for _ in range(40):
        inner = functional(X, following(inner, *["x"] * 20), outputs=[["n", 0, 0]] * 20, name="n")
    inner["config"]["name"] = "m"
    imported = importing.read(archive(tmp_path, inner), fold_batch_norm=True)
    assert not imported.layers  # the weights are elsewhere
