"""Whole models of Keras' with their convolutions folded, beside the models themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import importing
from convserve.layers.keras_layers import CONVOLUTIONS

pytestmark = [
    # TensorFlow's variables have not the signature that NumPy 2 asks for.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]
keras = pytest.importorskip("keras")
layers = keras.layers


def with_random_weights(model: Any) -> Any:
    """Gives a model weights and statistics that are all different, with outputs that neither vanish nor explode."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, layers.BatchNormalization):
            parts = [rng.uniform(0.5, 1.5, each.shape) * np.sign(rng.normal(size=each.shape)) for each in layer.weights]
            parts[-1] = np.abs(parts[-1])  # the variance
            layer.set_weights(parts)
        elif type(layer).__name__ in CONVOLUTIONS:
            shapes = [each.shape for each in layer.get_weights()]
            layer.set_weights(
                [
                    rng.normal(scale=np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.3, size=shape)
                    for shape in shapes
                ]
            )
    return model


def assert_close(found: Any, expected: Any) -> None:
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def vgg_block() -> Any:
    parts: list[Any] = [keras.Input((16, 16, 3))]
    for number, options in enumerate(({"use_bias": False}, {}, {})):
        parts.append(layers.Conv2D(8, 3, padding="same", **options))
        parts.append(layers.BatchNormalization(scale=number != 1, center=number != 2, epsilon=0.01))
        parts.append(layers.Activation("relu"))
    return keras.Sequential(parts, name="vgg")


def inverted_residual() -> Any:
    """What MobileNetV2 is made of, without the addition."""
    x = inputs = keras.Input((17, 17, 4))
    x = layers.Conv2D(12, 1, use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-3, momentum=0.999)(x))
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(layers.ZeroPadding2D(((0, 1), (1, 0)))(x))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(6, 1, use_bias=False)(x))
    x = layers.SeparableConv2D(5, 3, padding="same", use_bias=False)(layers.Dropout(0.5)(x))
    return keras.Model(inputs, layers.LeakyReLU()(layers.BatchNormalization()(x)), name="inverted")


def waves() -> Any:
    """A chain of rank 1."""
    return keras.Sequential([
        keras.Input((30, 3)), layers.Conv1D(6, 3, padding="causal", dilation_rate=2), layers.BatchNormalization(),
        layers.LeakyReLU(0.1), layers.ZeroPadding1D((1, 2)), layers.DepthwiseConv1D(3, strides=2, use_bias=False),
        layers.BatchNormalization(), layers.SeparableConv1D(4, 3, use_bias=False), layers.BatchNormalization(),
        layers.Activation("softmax"),
    ], name="waves")  # fmt: skip


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("make", [vgg_block, inverted_residual, waves])
def test_a_folded_chain_computes_what_the_model_does(
    tmp_path: Path, client: convserve.Client, make: Callable[[], Any], suffix: str
) -> None:
    model = with_random_weights(make())
    model.save(tmp_path / f"model.{suffix}")
    imported = importing.read(tmp_path / f"model.{suffix}", fold_batch_norm=True)
    assert {each.kind for each in imported.skipped} <= {"InputLayer"}
    assert not imported.note
    x = np.random.default_rng(1).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    given = x if x.ndim == 4 else x[:, None]
    found = client.convolve(list(imported.layers.values()), given).output
    assert_close(found if x.ndim == 4 else found[:, 0], model.predict(x, verbose=0))
    alone = importing.read(tmp_path / f"model.{suffix}")
    assert list(alone.layers) == list(imported.layers)
    assert "BatchNormalization" in alone.note


class Passing(layers.Layer):
    """What is left of a layer that became part of another."""

    def call(self, inputs: Any, **_: Any) -> Any:
        return inputs


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("fuse", [False, True])
def test_a_saved_remote_model_has_the_same_layers(tmp_path: Path, suffix: str, fuse: bool) -> None:
    from convserve.keras import to_remote

    model = with_random_weights(inverted_residual())
    read = []
    for each in (model, to_remote(model, "127.0.0.1:1", fuse=fuse)):
        each.save(tmp_path / f"model.{suffix}")
        read.append(importing.read(tmp_path / f"model.{suffix}", fold_batch_norm=True).layers.values())
    local, remote = ([layer.digest for layer in layers] for layers in read)
    assert len(local) == 5
    assert remote == local


def replayed(model: Any, imported: importing.Imported) -> Any:
    """Returns a model whose convolutions are the imported ones, and in which only what was skipped is left beside."""
    left = {each.name for each in imported.skipped}

    def copied(model: Any, before: str) -> Any:
        def made(layer: Any) -> Any:
            name = f"{before}{layer.name}"
            if isinstance(layer, keras.Model):
                return copied(layer, f"{name}/")
            chain = [imported.layers[part] for part in (name, f"{name}/depthwise", f"{name}/pointwise")
                     if part in imported.layers]  # fmt: skip
            if chain:
                return keras.Sequential([each.to_keras() for each in chain], name=layer.name)
            if name not in left:
                return Passing(name=layer.name)
            again = type(layer).from_config(layer.get_config())
            if isinstance(layer, layers.BatchNormalization):
                again.build(layer.get_build_config()["input_shape"])
                again.set_weights(layer.get_weights())
            return again

        return keras.models.clone_model(model, clone_function=made, recursive=False)

    return copied(model, f"{model.name}/")


def branches() -> Any:
    """All that must not be folded: branches, outputs in between, a shared layer, other dtypes, activations twice."""
    x = inputs = keras.Input((12, 12, 4), name="photo")
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    y = layers.BatchNormalization(name="on_shared")(shared(layers.ZeroPadding2D(1, name="pad_shared")(x)))
    y = layers.BatchNormalization(name="on_shared_too")(shared(y))
    middle = layers.Conv2D(4, 1, name="middle")(y)
    y = layers.BatchNormalization(name="after_middle")(middle)
    y = layers.Conv2D(4, 1, activation="tanh", name="curved")(y)
    y = layers.BatchNormalization(name="after_curved")(y)
    wide = layers.ZeroPadding2D(1, name="pad_twice")(y)
    left = layers.Conv2D(4, 3, name="left")(wide)
    right = layers.DepthwiseConv2D(3, name="right")(wide)
    y = layers.ReLU(name="after_add")(layers.Add()([layers.ReLU(name="after_left")(left), right]))
    y = layers.Conv2D(4, 3, padding="same", name="same")(layers.ZeroPadding2D(1, name="pad_same")(y))
    y = layers.BatchNormalization(axis=1, name="rows")(y)
    y = layers.Conv2D(4, 1, name="noted", activity_regularizer="l2")(y)
    y = layers.BatchNormalization(name="after_noted")(y)
    inner_x = keras.Input((16, 16, 4))
    inner = layers.BatchNormalization(name="b")(layers.SeparableConv2D(4, 3, name="s")(inner_x))
    inner = keras.Model(inner_x, inner, name="inner")
    y = layers.BatchNormalization(name="after_inner")(inner(y))
    y = layers.Conv2D(4, 1, name="last")(y)
    end = layers.Activation("softmax", name="end", dtype="float64")(y)
    return keras.Model(inputs, [end, middle], name="branches")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_what_is_left_and_what_is_folded_are_the_model_together(tmp_path: Path, suffix: str) -> None:
    model = with_random_weights(branches())
    model.save(tmp_path / f"model.{suffix}")
    imported = importing.read(tmp_path / f"model.{suffix}", fold_batch_norm=True)
    left = {each.name.removeprefix("branches/"): each.reason for each in imported.skipped
            if each.reason.startswith("left as it is: ")}  # fmt: skip
    assert set(left) == {
        "pad_shared", "on_shared", "on_shared_too", "after_middle", "after_curved", "pad_twice", "after_add",
        "pad_same", "rows", "after_noted", "after_inner", "end",
    }  # fmt: skip
    assert "7 BatchNormalization, 3 ZeroPadding2D" in imported.note
    x = np.random.default_rng(1).normal(size=(2, 12, 12, 4)).astype(np.float32)
    for found, expected in zip(replayed(model, imported)(x), model(x), strict=True):
        assert_close(found, expected)


def drawn(rng: np.random.Generator) -> Any:
    """Returns a model of layers in a row, some of which are added to what was before."""
    x = inputs = keras.Input((11, 11, 4))
    taken = [x]
    for _ in range(12):
        kind = rng.integers(8)
        if kind < 2:
            options = {"padding": str(rng.choice(["valid", "same"])), "use_bias": bool(rng.random() < 0.5)}
            options["activation"] = str(rng.choice(["linear", "linear", "elu"]))
            made = (
                layers.Conv2D(4, int(rng.integers(1, 3)), **options) if kind else layers.DepthwiseConv2D(2, **options)
            )
        elif kind < 4:
            made = layers.BatchNormalization(scale=bool(rng.random() < 0.5), center=bool(rng.random() < 0.5))
        elif kind == 4:
            made = layers.ZeroPadding2D(((0, 1), (1, int(rng.integers(3)))))
        elif kind == 5:
            made = [layers.ReLU(6.0), layers.Activation("tanh"), layers.Dropout(0.5)][rng.integers(3)]
        elif kind == 6:
            made = layers.SeparableConv2D(4, 2, padding="same")
        else:
            same = [each for each in taken[:-1] if each.shape == x.shape]
            if not same:
                continue
            x = layers.Add()([x, same[-1]])
            continue
        x = made(x)
        taken.append(x)
    outputs = [x] if rng.random() < 0.7 else [x, taken[len(taken) // 2]]
    return keras.Model(inputs, outputs, name="drawn")


@pytest.mark.parametrize("seed", range(4))
def test_drawn_models_are_what_is_left_and_what_is_folded(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = with_random_weights(drawn(rng))
    model.save(tmp_path / "model.keras")
    imported = importing.read(tmp_path / "model.keras", fold_batch_norm=True, prefix="drawn")
    x = rng.normal(size=(2, 11, 11, 4)).astype(np.float32)
    found, expected = replayed(model, imported)(x), model(x)
    for mine, theirs in zip(*(each if isinstance(each, list) else [each] for each in (found, expected)), strict=True):
        assert_close(mine, theirs)


# What of each is left: it follows no convolution, but what was added, multiplied or put together.
REAL = {
    "MobileNetV2": (64, "h5", {}),
    "ResNet50V2": (64, "keras", {"ZeroPadding2D": 1, "BatchNormalization": 17, "Activation": 17}),
    "Xception": (75, "h5", {"Activation": 11}),
    "EfficientNetB0": (64, "keras", {}),
    "NASNetMobile": (64, "keras", {"Activation": 112, "ZeroPadding2D": 8, "BatchNormalization": 4}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_models_are_what_is_left_and_what_is_folded(tmp_path: Path, name: str) -> None:
    size, suffix, expected = REAL[name]
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(size, size, 3))
    with_random_weights(model).save(tmp_path / f"model.{suffix}")
    imported = importing.read(tmp_path / f"model.{suffix}", fold_batch_norm=True, prefix=model.name)
    left = Counter(each.kind for each in imported.skipped if each.reason.startswith("left as it is: "))
    assert left == expected
    x = np.random.default_rng(1).normal(size=(1, size, size, 3)).astype(np.float32)
    assert_close(replayed(model, imported)(x), model(x))
