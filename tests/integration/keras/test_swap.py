"""`to_remote` and `to_local`: whole models there and back, and a photograph through one of `keras.applications`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported, by its C++ side
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib import cbook
from PIL import Image

import convserve
from convserve.keras import RemoteConv2D, to_local, to_remote
from tests.support.keras.models import apart, kinds, same_weights
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
tf.config.set_visible_devices([], "GPU")
tf.get_logger().setLevel("ERROR")  # of a model for each test, TensorFlow says that it traces often

layers = keras.layers
X = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(np.float32)


def in_model(*of: Any, name: str | None = None) -> Any:
    return keras.Sequential([keras.Input((12, 12, 3)), *of], name=name)


def test_a_model_of_keras_applications_agrees_on_a_photograph(server: RunningServer, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    made = keras.applications.MobileNet((96, 96, 3), 0.25, weights=None, classes=10, classifier_activation=None)
    made.save(tmp_path / "original.keras")
    model = keras.models.load_model(tmp_path / "original.keras")
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as opened:
        photo = np.asarray(opened.resize((96, 96)), np.float32)[None]
    images = keras.applications.mobilenet.preprocess_input(np.concatenate([photo, photo[:, :, ::-1]]))
    expected = model.predict(images, verbose=0)

    remote = to_remote(model, server=server.target)
    assert kinds(remote).count("RemoteConv2D") == kinds(model).count("Conv2D") == 15
    assert "Conv2D" not in kinds(remote)
    assert apart(remote.predict(images, verbose=0), expected) < 1e-4
    assert remote.count_params() == model.count_params()
    assert [each.name for each in remote.layers] == [each.name for each in model.layers]

    remote.save(tmp_path / "remote.keras")
    loaded = keras.models.load_model(tmp_path / "remote.keras")
    assert kinds(loaded) == kinds(remote)
    assert apart(loaded(images), expected) < 1e-4

    back = to_local(loaded)
    assert kinds(back) == kinds(model)
    assert same_weights(back, model)
    assert np.array_equal(back(images), model(images))


def functional() -> Any:
    """Returns a model with a shared layer, a shared nested model, functions of keras.ops, and two outputs."""
    x = keras.Input((12, 12, 3), name="picture")
    y = keras.Input((12, 12, 3))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared", kernel_regularizer="l2")
    inner = in_model(layers.Conv2D(4, 3, padding="same", name="within"), layers.BatchNormalization(), name="inner")
    joined = keras.ops.concatenate([shared(x), inner(y)], axis=-1)
    outputs = [keras.ops.relu(inner(x)) + shared(y), layers.Conv2D(2, 1, name="last")(joined)]
    return keras.Model([x, y], outputs, name="outer")


def test_nested_and_shared_layers_keep_names_weights_and_losses(server: RunningServer, tmp_path: Path) -> None:
    model = functional()
    remote = to_remote(model, server.target, timeout=120)
    assert remote.get_layer("inner").get_layer("within").timeout == 120
    assert kinds(remote).count("RemoteConv2D") == 3
    assert [each.name for each in remote.layers] == [each.name for each in model.layers]
    assert (remote.name, remote.output_names) == (model.name, model.output_names)
    remote.save(tmp_path / "remote.keras")
    for same in (remote, keras.models.load_model(tmp_path / "remote.keras"), to_local(remote)):
        for found, expected in zip(same([X, -X]), model([X, -X]), strict=True):
            assert apart(found, expected) < 1e-5
        assert np.allclose([float(each) for each in same.losses], [float(each) for each in model.losses])
        assert same_weights(same, model)
    assert kinds(to_local(remote)) == kinds(model)


def test_a_compiled_model_is_compiled_again(server: RunningServer) -> None:
    model = in_model(layers.Conv2D(1, 3, activation="sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["mae"])
    labels = np.ones((2, 10, 10, 1), np.float32)
    remote = to_remote(model, server.target)
    assert np.allclose(remote.evaluate(X, labels, verbose=0), model.evaluate(X, labels, verbose=0), rtol=1e-5)
    with pytest.raises(convserve.InvalidRequestError, match="to_local"):
        remote.fit(X, labels, verbose=0)
    local = to_local(remote)
    assert len(local.fit(X, labels, verbose=0).history["loss"]) == 1
    model.compile("adam", "mse", jit_compile=True)  # what Keras chooses on a GPU; XLA cannot call a server
    assert to_remote(model, server.target).jit_compile is False
    assert to_local(to_remote(model, server.target)).jit_compile is True


@keras.saving.register_keras_serializable(package="test")
class OwnConv2D(keras.layers.Conv2D):
    """A subclass, whose computation nobody but its author knows."""


def test_what_is_no_convolution_of_keras_own_stays(server: RunningServer) -> None:
    model = in_model(
        OwnConv2D(3, 3), layers.Conv2D(3, 1), layers.DepthwiseConv2D(3), layers.SeparableConv2D(3, 3),
        layers.Conv2DTranspose(2, 3),
    )  # fmt: skip
    remote = to_remote(model, server.target)
    remote_kinds = ["RemoteConv2D", "RemoteDepthwiseConv2D", "RemoteSeparableConv2D"]
    assert kinds(remote) == ["OwnConv2D", *remote_kinds, "Conv2DTranspose"]
    assert kinds(to_local(remote)) == kinds(model)
    assert apart(remote(X), model(X)) < 1e-5


def adapted_normalization() -> Any:
    layer = layers.Normalization()
    layer.adapt(5 * X + 2)
    return layer


def with_lora() -> Any:
    layer = layers.Conv2D(4, 3)
    layer.build((None, 12, 12, 3))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: in_model(adapted_normalization(), layers.Conv2D(4, 3)),
        lambda: in_model(with_lora()),
        lambda: in_model(layers.Conv2D(4, 3, activation=layers.PReLU(alpha_initializer="uniform"))),
        lambda: in_model(layers.Conv2D(4, 3, activation=lambda x: x**2, kernel_regularizer=lambda w: w[0, 0, 0, 0])),
        lambda: in_model(layers.SpectralNormalization(layers.Conv2D(4, 3))),
        lambda: in_model(layers.Reshape((2, 6, 12, 3)), layers.TimeDistributed(layers.Conv2D(4, 3))),
        lambda: in_model(layers.Reshape((1, 12, 12, 3)), layers.TimeDistributed(in_model(layers.Conv2D(4, 3)))),
        lambda: keras.Sequential([layers.Conv2D(4, 3, dtype="mixed_bfloat16"), layers.Conv2D(2, 1)]),
    ],
    ids=[
        "normalization", "lora", "activation layer", "functions", "wrapper", "time distributed", "nested in it",
        "without input",
    ],
)  # fmt: skip
def test_layers_that_keep_more_than_weights(server: RunningServer, make: Any) -> None:
    model = make()
    expected = model(X)
    remote = to_remote(model, server.target)
    assert apart(remote(X), expected) < 1e-5
    assert same_weights(remote, model)
    assert remote.count_params() == model.count_params()
    again = to_local(remote)
    assert same_weights(again, model)
    assert np.array_equal(again(X), expected)


def doubled(x: Any) -> Any:
    return x * FACTOR


FACTOR = 2.0


def times(factor: float) -> Any:
    return lambda x: x * factor


class Halves(keras.initializers.Initializer):
    """An initializer that Keras cannot find by its name."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return 0.5 * np.ones(shape, dtype)


@pytest.mark.parametrize(
    "function",
    [
        layers.Lambda(doubled),
        layers.Lambda(lambda x: x * FACTOR),
        layers.Lambda(times(3.0)),
        layers.Lambda(lambda x, by: x * by, arguments={"by": 3.0}),
        layers.Lambda(lambda x: x[:, :6], output_shape=lambda shape: (shape[0], 6, *shape[2:])),
        layers.Activation(doubled),
        layers.Dense(3, activation=doubled, kernel_initializer=Halves()),
        layers.TimeDistributed(layers.Lambda(lambda x: x * FACTOR)),
        layers.TimeDistributed(layers.TimeDistributed(layers.Lambda(doubled))),
        in_model(layers.Lambda(lambda x: x * FACTOR), name="inner"),
    ],
)
def test_functions_and_objects_of_ones_own_are_handed_on(server: RunningServer, function: Any) -> None:
    model = in_model(function, layers.Conv2D(4, 3, kernel_initializer=Halves(), activation=doubled))
    remote = to_remote(model, server.target)
    assert apart(remote(X), model(X)) < 1e-5
    assert remote.layers[0] is not model.layers[0]
    assert np.array_equal(to_local(remote)(X), model(X))


@keras.saving.register_keras_serializable("test_swap")
def tripled(x: Any) -> Any:
    return x * 3.0


@keras.saving.register_keras_serializable("test_swap")
class Applies(layers.Layer):
    """Makes a function of what get_config wrote, as Keras' guides have it."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "function": keras.saving.serialize_keras_object(self.function)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(keras.saving.deserialize_keras_object(config.pop("function")), **config)


def test_a_layer_that_reads_its_own_configuration_gets_what_it_wrote(server: RunningServer) -> None:
    model = in_model(Applies(tripled), layers.TimeDistributed(Applies(tripled)), layers.Conv2D(4, 3))
    remote = to_remote(model, server.target)
    assert apart(remote(X), model(X)) < 1e-5
    assert np.array_equal(to_local(remote)(X), model(X))


def test_a_vocabulary_is_kept(server: RunningServer) -> None:
    words = layers.StringLookup()
    words.adapt(["cat", "dog"])
    image, word = keras.Input((12, 12, 3)), keras.Input((), dtype="string")
    model = keras.Model([image, word], [layers.Conv2D(4, 3)(image), words(word)])
    inputs = [tf.constant(X), tf.constant(["dog", "fish"])]
    for found, expected in zip(to_remote(model, server.target)(inputs), model(inputs), strict=True):
        assert apart(found, expected) < 1e-5


def test_a_remote_model_moves_to_another_server(server: RunningServer) -> None:
    remote = to_remote(in_model(layers.Conv2D(4, 3)), "127.0.0.1:1")
    moved = to_remote(remote, server.target, timeout=80)
    assert (moved.layers[0].server, moved.layers[0].timeout) == (server.target, 80)
    assert apart(moved(X), to_local(remote)(X)) < 1e-5


@pytest.mark.parametrize("timeout", [0, "x", float("nan")])
def test_a_wrong_timeout_is_refused_as_by_a_layer(timeout: Any) -> None:
    with pytest.raises(convserve.InvalidRequestError, match=r"^timeout: "):
        to_remote(in_model(layers.Conv2D(4, 3)), timeout=timeout)


def test_an_unbuilt_model_is_swapped_and_a_model_of_an_own_class_is_refused() -> None:
    remote = to_remote(keras.Sequential([layers.Conv2D(4, 3)]))
    assert isinstance(remote.layers[0], RemoteConv2D)
    assert not remote.built

    class Own(keras.Model):
        """A model whose layers only its code knows."""

    for model in (Own(), layers.Conv2D(4, 3), None):
        with pytest.raises(convserve.InvalidRequestError, match="Expected a Sequential or Functional model"):
            to_remote(model)


class Judged(keras.Model):
    """A model with a layer and a weight beside its graph, as for a loss of one's own."""

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None) -> None:
        super().__init__(inputs, outputs, name=name)
        self.judge = layers.Dense(3)
        self.judge.build((None, 4))
        self.factor = self.add_weight(shape=(2,), name="factor")


@pytest.mark.parametrize("fuse", [False, True])
def test_a_class_may_have_weights_beside_its_graph(fuse: bool) -> None:
    x = keras.Input((8, 8, 3))
    sides = [layers.BatchNormalization()(layers.Conv2D(4, 3)(x)) for _ in range(2)]
    model = Judged(x, layers.Add()(sides))
    remote = to_remote(model, "localhost:1", fuse=fuse)
    assert type(remote) is Judged
    assert sorted(map(np.shape, remote.get_weights())) == sorted(map(np.shape, model.get_weights()))
