"""Weights out of real files against the programs that wrote them: Keras' own load, and what PyTorch computed."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import convserve
from convserve import importing
from convserve.importing.imported import fitting_name
from convserve.layers.keras_layers import CONVOLUTIONS
from tests.support.repository import ROOT

# TensorFlow's variables have not the signature that NumPy 2 asks for.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

RECORDED = json.loads((ROOT / "tests/data/torch_conv2d.json").read_text())


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def everything(keras, model, path=()):
    """Yields whatever a model is made of, nested models included, with its name: layers, inputs, operations."""
    # Keras does not count inputs among the layers of a Sequential, nor operations among those of any model.
    inside = model._layers if isinstance(model, keras.Sequential) else model.operations
    for each in inside:
        if isinstance(each, keras.Model):
            yield from everything(keras, each, (*path, each.name))
        else:
            yield "/".join((*path, each.name)), each


def conv2ds(keras, model):
    """Yields every Conv2D of a model, nested models included, with its name."""
    return ((name, each) for name, each in everything(keras, model) if type(each) is keras.layers.Conv2D)


def as_layers(keras, model):
    """Yields what every convolution of a model is as layers, with their names."""
    for name, each in everything(keras, model):
        if type(each).__name__ in CONVOLUTIONS:
            own = convserve.Layer.from_keras(each)
            parts = zip(("/depthwise", "/pointwise"), own, strict=True) if isinstance(own, list) else [("", own)]
            yield from ((f"{name}{part}", layer) for part, layer in parts)


def with_random_weights(keras, model):
    """Gives every Conv2D weights that are all different, biases included, which initializers leave at 0."""
    rng = np.random.default_rng(0)
    for _, layer in everything(keras, model):
        if type(layer).__name__ in CONVOLUTIONS:
            layer.set_weights([rng.normal(size=each.shape) for each in layer.get_weights()])
    return model


def assert_same(keras, loaded, imported):
    """Compares all layers, and their order, with those of a loaded model; whatever else it has is skipped, once."""
    expected = [(fitting_name(f"{loaded.name}/{name}"), layer) for name, layer in as_layers(keras, loaded)]
    assert list(imported.layers) == [name for name, _ in expected]
    for name, own in expected:
        assert imported.layers[name].config == own.config
        assert imported.layers[name].digest == own.digest, name
        np.testing.assert_array_equal(imported.layers[name].kernel, own.kernel)
    others = [name for name, each in everything(keras, loaded) if type(each).__name__ not in CONVOLUTIONS]
    assert [each.name for each in imported.skipped] == [f"{loaded.name}/{name}" for name in others]


@pytest.mark.parametrize(
    ("name", "suffix", "options", "absent"),
    [
        ("MobileNetV2", "keras", {"alpha": 0.35}, "BatchNormalization"),
        ("MobileNetV2", "h5", {"alpha": 0.35}, "BatchNormalization"),
        # It has operations such as `x + 3.0` among its layers; Keras itself cannot load it from .h5 for that.
        ("MobileNetV3Small", "keras", {"include_top": False}, "Add"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_every_conv2d_of_a_real_model_is_found(keras, tmp_path, name, suffix, options, absent):
    make = getattr(keras.applications, name)
    model = with_random_weights(keras, make(weights=None, input_shape=(64, 64, 3), **options))
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    imported = importing.read(path)
    assert_same(keras, keras.saving.load_model(path, compile=False, safe_mode=True), imported)
    assert absent in {each.kind for each in imported.skipped}
    if name == "MobileNetV2":
        assert "52 BatchNormalization, 35 ReLU, 4 ZeroPadding2D beside these layers" in imported.note
        folded = importing.read(path, fold_batch_norm=True)
        assert list(folded.layers) == list(imported.layers)
        assert len(folded.layers) == 52
        assert not {"BatchNormalization", "ReLU", "ZeroPadding2D"} & {each.kind for each in folded.skipped}


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_nested_models_are_found_as_keras_loads_them(keras, tmp_path, suffix):
    """Models in models in models, of both kinds, one applied twice, layers that share their names but not more."""
    layers = keras.layers

    def conv2d(**options):
        return layers.Conv2D(4, 3, padding="same", **options)

    def sequence(name):
        parts = [keras.Input((8, 8, 4)), conv2d(name="a"), layers.ReLU(), conv2d(name="b", groups=2)]
        return keras.Sequential(parts, name=name)

    x = keras.Input((8, 8, 4))
    inner = keras.Model(x, layers.Add()([x, sequence("s")(conv2d(name="a")(x))]), name="inner")
    deferred = keras.Sequential([conv2d(name="a", use_bias=False), inner, layers.Dropout(0.5)], name="deferred")
    x = keras.Input((8, 8, 4), name="photo")
    repeated = sequence("repeated")
    y = sequence("s")(repeated(deferred(repeated(conv2d(name="a")(x)))))
    y = layers.TimeDistributed(layers.Conv2D(2, 1), name="each")(layers.Reshape((1, 8, 8, 4))(y))
    y = layers.SeparableConv2D(4, 3)(conv2d(dtype="mixed_float16")(layers.Reshape((8, 8, 2))(y)))
    path = tmp_path / f"model.{suffix}"
    with_random_weights(keras, keras.Model(x, y, name="outer")).save(path)
    loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    assert_same(keras, loaded, importing.read(path))
    assert len(list(conv2ds(keras, loaded))) == 10


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_layers_of_a_model_that_models_share_are_found_under_each_of_its_names(keras, tmp_path, suffix):
    """Also where names alone would not tell which layers they are."""
    layers = keras.layers
    shared = keras.Sequential([keras.Input((8, 8, 4)), *(layers.Conv2D(4, 1, name=name) for name in "ab")], name="s")
    x = keras.Input((8, 8, 4))
    inner = keras.Model(x, shared(layers.Conv2D(4, 1, name="a")(x)), name="inner")
    x = keras.Input((8, 8, 4))
    model = with_random_weights(keras, keras.Model(x, inner(shared(x)), name="outer"))
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    imported = importing.read(path)
    assert_same(keras, model, imported)  # of the .keras file, Keras 3.15 cannot load the shared model's connections
    assert list(imported.layers) == ["outer/s/a", "outer/s/b", "outer/inner/a", "outer/inner/s/a", "outer/inner/s/b"]
    assert len({layer.digest for layer in imported.layers.values()}) == 3


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file", "ignore:Skipping nested container")
def test_a_layer_that_keras_itself_does_not_find_again_is_skipped_with_advice(keras, tmp_path):
    """Keras writes no identity for a shared layer that a nested model has first."""
    shared = keras.layers.Conv2D(4, 1, name="shared")
    x = keras.Input((8, 8, 4))
    inner = keras.Model(x, shared(x), name="inner")
    x = keras.Input((8, 8, 4))
    model = with_random_weights(keras, keras.Model(x, shared(inner(x)), name="outer"))
    for suffix in ("keras", "h5"):
        model.save(tmp_path / f"model.{suffix}")
    with pytest.raises(ValueError, match="could not be loaded"):
        keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    imported = importing.read(tmp_path / "model.keras")
    assert list(imported.layers) == ["outer/inner/shared"]
    (reason,) = (each.reason for each in imported.skipped if each.name == "outer/shared")
    assert "only an .h5 file would say" in reason
    assert_same(keras, model, importing.read(tmp_path / "model.h5"))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_layers_of_a_saved_remote_model_are_found(keras, tmp_path, suffix):
    from convserve.keras import RemoteConv2D, to_remote

    layers = keras.layers
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same", name="a")], name="inner")
    parts = [layers.Conv2D(4, 1, activation=layers.LeakyReLU(0.25), name="b"), layers.Conv2D(4, 1, name="c"), inner]
    model = with_random_weights(keras, keras.Sequential([keras.Input((8, 8, 4)), *parts], name="m"))
    remote = to_remote(model, ["127.0.0.1:1", "127.0.0.1:2"], timeout=3)
    assert {type(each) for each in remote.layers} == {RemoteConv2D, keras.Sequential}
    remote.save(tmp_path / f"x.{suffix}")
    layers = importing.read(tmp_path / f"x.{suffix}").layers
    assert {name: layer.digest for name, layer in layers.items()} == {
        f"m/{name}": convserve.Layer.from_keras(layer).digest for name, layer in conv2ds(keras, model)
    }


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_layers_of_a_saved_model_with_remote_chains_are_found(keras, tmp_path, suffix):
    from convserve.keras import to_remote

    layers = keras.layers
    parts = [
        layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad"), layers.Conv2D(4, 3, strides=2, use_bias=False, name="stem"),
        layers.BatchNormalization(name="norm"), layers.ReLU(6.0, name="relu"),
        layers.DepthwiseConv2D(3, padding="same", name="deep"), layers.SeparableConv2D(4, 3, name="apart"),
    ]  # fmt: skip
    model = with_random_weights(keras, keras.Sequential([keras.Input((9, 9, 2)), *parts], name="m"))
    model.save(tmp_path / f"local.{suffix}")
    for name, options in (("single", {}), ("fused", {"fuse": True})):
        to_remote(model, "127.0.0.1:1", **options).save(tmp_path / f"{name}.{suffix}")
        for fold in (False, True):
            found, expected = (
                [layer.digest for layer in importing.read(file, fold_batch_norm=fold).layers.values()]
                for file in (tmp_path / f"{name}.{suffix}", tmp_path / f"local.{suffix}")
            )
            assert len(expected) == 4, (name, fold)
            assert found == expected, (name, fold)


@pytest.fixture(scope="module")
def nested(keras):
    """Models in models, layers that share their names, one layer in two models, groups, other dtypes, an operation."""
    layers = keras.layers
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    sequence = keras.Sequential([layers.Conv2D(4, 1, name="a"), layers.ReLU(), layers.Conv2D(4, 1, name="b")], name="s")
    x = keras.Input((16, 16, 4))
    a = layers.Conv2D(4, 3, padding="same", name="a", activation=layers.LeakyReLU(negative_slope=0.3))
    branch = keras.Model(x, shared(a(x)), name="branch")
    x = keras.Input((16, 16, 4), name="photo")
    y = branch(sequence(shared(layers.Conv2D(4, 3, padding="same", name="a")(x)))) + 1.0
    y = layers.Conv2D(8, 3, groups=2, dtype="mixed_float16", kernel_regularizer="l2", name="mixed")(y)
    y = layers.Conv2D(8, 3, dtype="bfloat16", use_bias=False, name="brain")(y)
    y = layers.TimeDistributed(layers.Conv2D(2, 1), name="each")(layers.Reshape((1, 12, 12, 8))(y))
    return with_random_weights(keras, keras.Model(x, y, name="outer"))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_nested_models_and_shared_layers(keras, nested, tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    nested.save(path)
    imported = importing.read(path)
    # Keras 3.15 loads neither of its two files: it loses how the shared layer and the operation are connected.
    assert_same(keras, nested, imported)
    layers = imported.layers
    assert list(layers) == ["outer/a", "outer/shared", "outer/s/a", "outer/s/b", "outer/branch/a",
                            "outer/branch/shared", "outer/mixed", "outer/brain"]  # fmt: skip
    assert layers["outer/shared"].digest == layers["outer/branch/shared"].digest
    assert len({layer.digest for layer in layers.values()}) == 7
    assert "around 'Conv2D'" in {each.name: each.reason for each in imported.skipped}["outer/each"]


def test_an_imported_layer_computes_what_the_models_does(keras, nested, tmp_path, client):
    nested.save(tmp_path / "model.keras")
    x = np.random.default_rng(1).normal(size=(2, 16, 16, 4)).astype(np.float32)
    for name, layer in importing.read(tmp_path / "model.keras").layers.items():
        if layer.config.dtype == "float32":
            original = dict(conv2ds(keras, nested))[name.removeprefix("outer/")]
            stored = client.put(layer, name=f"import-test/{name}")
            np.testing.assert_allclose(stored(x), np.asarray(original(x)), rtol=1e-5, atol=1e-5)


# PyTorch


def recorded_array(case, name):
    found = case[name]
    return None if found is None else np.array(found["values"], np.float32).reshape(found["shape"])


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_a_state_dictionary_gives_pytorchs_numbers(client, tmp_path, case):
    assert RECORDED["made_with"].startswith("torch 2.")
    weight, bias = recorded_array(case, "weight"), recorded_array(case, "bias")
    arrays = {"net.conv.weight": weight} | ({} if bias is None else {"net.conv.bias": bias})
    save_file(arrays, tmp_path / "state.safetensors")
    config = {"net.conv": case["arguments"]}
    layer = importing.read(tmp_path / "state.safetensors", config=config).layers["state/net.conv"]
    x = np.ascontiguousarray(recorded_array(case, "x").transpose(0, 2, 3, 1))
    y = client.convolve(layer, x).output
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), recorded_array(case, "y"), rtol=1e-5, atol=1e-5)


def test_same_would_differ_from_pytorch_with_strides(client, tmp_path):
    case = RECORDED["cases"][0]
    assert case["arguments"] == {"stride": 2, "padding": 1}
    np.savez(tmp_path / "x.npz", **{"c.weight": recorded_array(case, "weight"), "c.bias": recorded_array(case, "bias")})
    x = np.ascontiguousarray(recorded_array(case, "x").transpose(0, 2, 3, 1))
    same = client.convolve(importing.read(tmp_path / "x.npz", stride=2, padding="same").layers["x/c"], x).output
    expected = recorded_array(case, "y").transpose(0, 2, 3, 1)
    assert same.shape == expected.shape
    assert np.abs(same - expected).max() > 0.1


def test_channels_first_takes_pytorchs_tensors_as_they_are(client, tmp_path):
    case = RECORDED["cases"][0]
    np.savez(tmp_path / "x.npz", **{"c.weight": recorded_array(case, "weight"), "c.bias": recorded_array(case, "bias")})
    layers = importing.read(tmp_path / "x.npz", stride=2, padding=1, data_format="channels_first").layers
    y = client.convolve(layers["x/c"], recorded_array(case, "x")).output
    np.testing.assert_allclose(y, recorded_array(case, "y"), rtol=1e-5, atol=1e-5)


# Back to Keras


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"strides": 2, "padding": "same", "activation": "relu", "name": "stem"},
        {"padding": ((1, 1), (1, 1)), "strides": 2, "name": "torch"},
        {"padding": ((0, 2), (3, 0)), "groups": 2, "use_bias": False, "activation": "elu"},
        {"activation": convserve.activations.LeakyReLU(0.1)},
        {"dtype": "mixed_bfloat16", "kernel_regularizer": "l2", "trainable": False, "input_shape": (9, 9, 4)},
        {"padding": ((1, 0), (0, 1)), "dtype": "float64", "dilation_rate": 2},
    ],
)  # fmt: skip
def test_a_layer_as_keras_own_computes_the_same(keras, client, parameters):
    config = convserve.Conv2D(6, 3, **parameters)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 4 // config.groups, 6))
    layer = convserve.Layer(config, kernel, rng.normal(size=6) if config.use_bias else None)
    exported = layer.to_keras()
    assert exported.built
    assert type(exported) is (keras.layers.Conv2D if isinstance(config.padding, str) else keras.Sequential)
    own = exported if isinstance(config.padding, str) else exported.layers[-1]
    assert own.trainable is config.trainable
    np.testing.assert_array_equal(np.asarray(own.kernel), layer.kernel)
    x = rng.normal(size=(2, 9, 9, 4)).astype("float32")
    exported_y = np.asarray(exported(x), dtype=np.float64)
    tolerance = 2e-2 if "bfloat16" in config.dtype else 1e-5
    np.testing.assert_allclose(
        client.convolve(layer, x).output.astype(np.float64), exported_y, rtol=tolerance, atol=10 * tolerance
    )
    if isinstance(config.padding, str) and config.input_shape is None:
        assert convserve.Layer.from_keras(exported).digest == layer.digest


def test_a_layer_without_weights_is_not_built(keras):
    assert not convserve.Layer(convserve.Conv2D(6, 3)).to_keras().built
    padded = convserve.Layer(convserve.Conv2D(6, 3, padding=((1, 1), (0, 0))))
    assert not padded.to_keras().layers[-1].built


def test_an_activation_that_keras_cannot_serialize_is_refused(keras):
    config = convserve.Conv2D(6, 3, activation=convserve.activations.GELU(approximate=True), use_bias=False)
    with pytest.raises(convserve.InvalidConfigurationError, match="activation: Expected an activation that Keras"):
        convserve.Layer(config, np.ones((3, 3, 2, 6))).to_keras()
