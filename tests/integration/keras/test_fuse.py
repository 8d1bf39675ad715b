"""`to_remote(fuse=True)`: layers that only follow each other go in one call, and come back as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import convserve
from convserve.keras import RemoteChain, plan, report, to_local, to_remote
from tests.support.keras.models import CountedCalls, apart, kinds, same_weights, with_random_statistics
from tests.support.keras.truth import keras
from tests.support.servers.server_process import RunningServer

# Keras' variables tell numpy that they can be copied in an older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

layers = keras.layers
SHAPE = (12, 12, 3)
X = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)


def block(dtype: str | None = None) -> Any:
    """Returns a model with a stem, a bottleneck with what it jumps over, and a head that gives probabilities."""
    x = keras.Input(SHAPE)
    y = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad", dtype=dtype)(x)
    y = layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem", kernel_regularizer="l2", dtype=dtype)(y)
    y = layers.BatchNormalization(name="stem_bn", dtype=dtype)(y)
    stem = layers.ReLU(6.0, name="stem_relu", dtype=dtype)(y)
    y = layers.Conv2D(8, 1, name="expand", dtype=dtype)(stem)
    y = layers.BatchNormalization(name="expand_bn", scale=False, dtype=dtype)(y)
    y = layers.Activation("relu", name="expand_relu", dtype=dtype)(y)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise", dtype=dtype)(y)
    y = layers.BatchNormalization(name="depthwise_bn", center=False, dtype=dtype)(y)
    y = layers.LeakyReLU(name="depthwise_leaky", dtype=dtype)(y)
    y = layers.SeparableConv2D(8, 3, padding="same", name="project", dtype=dtype)(y)
    y = layers.Add(dtype=dtype)([y, stem])
    y = layers.Conv2D(4, 1, activation="softmax", name="head", dtype=dtype)(y)
    return with_random_statistics(keras.Model(x, y, name="block"))


STEM = ("pad", "stem", "stem_bn", "stem_relu")
BOTTLENECK = (
    "expand", "expand_bn", "expand_relu", "depthwise", "depthwise_bn", "depthwise_leaky", "project",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [None, "mixed_float16"])
def test_one_call_for_layers_that_only_follow_each_other(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    model = block(dtype)
    expected, tolerance = model.predict(X, verbose=0), 1e-5 if dtype is None else 5e-3
    remote = to_remote(model, server.target, fuse=True)
    assert report(remote).remote == (STEM, BOTTLENECK, ("head",))
    assert report(remote).local == ()
    chains = [each for each in remote.layers if isinstance(each, RemoteChain)]
    assert [tuple(each.name for each in chain.layers) for chain in chains] == [STEM, BOTTLENECK]
    counted = CountedCalls(monkeypatch)
    assert apart(remote(X), expected) < tolerance
    assert counted.calls == 3
    assert apart(remote.predict(X, verbose=0), expected) < tolerance
    assert remote.output_shape == model.output_shape
    assert remote.count_params() == model.count_params()
    assert np.allclose(float(sum(remote.losses)), float(sum(model.losses)))
    assert remote(X[:0]).shape == (0, *expected.shape[1:])


def test_it_is_saved_and_comes_back_as_it_was(server: RunningServer, tmp_path: Path) -> None:
    model = block()
    remote = to_remote(model, server.target, timeout=80, fuse=True)
    remote.save(tmp_path / "remote.keras")
    loaded = keras.models.load_model(tmp_path / "remote.keras")
    assert kinds(loaded) == kinds(remote)
    assert {each.timeout for each in loaded.layers if isinstance(each, RemoteChain)} == {80}
    assert same_weights(loaded, remote)
    assert apart(loaded(X), model(X)) < 1e-5
    for back in (to_local(loaded), to_local(remote)):
        assert [each.name for each in back.layers] == [each.name for each in model.layers]
        assert kinds(back) == kinds(model)
        assert same_weights(back, model)
        assert np.array_equal(back(X), model(X))
    single = to_remote(remote, server.target)  # as of what to_local returns
    assert kinds(single).count("RemoteChain") == 0
    assert kinds(single).count("BatchNormalization") == 3
    remote.save_weights(tmp_path / "remote.weights.h5")
    clone = keras.models.clone_model(remote)
    clone.load_weights(tmp_path / "remote.weights.h5")
    assert np.array_equal(clone(X), remote(X))


def test_weights_count_as_they_are_when_it_is_called(server: RunningServer) -> None:
    model = block()
    remote = to_remote(model, server.target, fuse=True)
    remote(X)
    chained = {each.name: each for layer in remote.layers for each in getattr(layer, "layers", [layer])}
    for find in (model.get_layer, chained.__getitem__):
        find("expand").kernel.assign(-find("expand").kernel)
        find("depthwise_bn").moving_variance.assign(2 * find("depthwise_bn").moving_variance)
    assert apart(remote(X), model(X)) < 1e-5
    assert apart(remote.predict(X, verbose=0), model(X)) < 1e-5
    chained["stem_bn"].moving_variance.assign(-np.ones(8))
    with pytest.raises(convserve.InvalidWeightsError, match=r"not finite.*without fuse=True"):
        remote(X)


def after(*parts: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    return keras.Sequential([keras.Input(shape), *parts])


def branch() -> Any:
    x = keras.Input(SHAPE)
    y = layers.Conv2D(4, 1, name="a")(x)
    z = layers.BatchNormalization(name="bn")(y)
    return keras.Model(x, layers.Add()([layers.Conv2D(4, 1, name="b")(z), layers.Conv2D(4, 1, name="c")(y)]))


def returned() -> Any:
    x = keras.Input(SHAPE)
    y = layers.Conv2D(4, 1, name="a")(x)
    return keras.Model(x, [y, layers.Conv2D(4, 1, name="b")(y)])


def shared() -> Any:
    x = keras.Input(SHAPE)
    twice = layers.Conv2D(3, 1, name="a")
    return keras.Model(x, layers.Conv2D(4, 1, name="b")(twice(twice(x))))


def called_with_arguments() -> Any:
    x = keras.Input(SHAPE)
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 1, name="a")(x), training=False)
    return keras.Model(x, y)


def of_two_dtypes() -> Any:
    return after(layers.Conv2D(4, 1, name="a"), layers.Conv2D(4, 1, name="b", dtype="float64"))


ENDS: list[tuple[Callable[[], Any], list[tuple[str, ...]], dict[str, str]]] = [
    (branch, [("a",), ("b",), ("c",)], {"bn": "others read too"}),
    (returned, [("a",), ("b",)], {}),
    (shared, [("a",), ("b",)], {}),
    (called_with_arguments, [("a",)], {}),
    (of_two_dtypes, [("a",), ("b",)], {}),
    (
        lambda: after(layers.Conv2D(4, 1, name="a", activation="relu"), layers.BatchNormalization(name="bn")),
        [("a",)],
        {"bn": "activation 'relu' already"},
    ),
    (
        lambda: after(layers.Conv2D(4, 1, activation=lambda x: x * 2, name="a"), layers.BatchNormalization(name="bn")),
        [("a",)],
        {"bn": "applied in this process"},
    ),
    (
        lambda: after(layers.Conv2D(4, 1, name="a"), layers.Dropout(0.5), layers.Conv2D(4, 1, name="b")),
        [("a",), ("b",)],
        {},
    ),
    (
        lambda: after(layers.Conv2D(4, 1, name="a", activity_regularizer="l2"), layers.Conv2D(4, 1, name="b")),
        [("a",), ("b",)],
        {},
    ),
    (
        lambda: after(layers.ZeroPadding2D(1, name="pad"), layers.Conv2D(4, 3, padding="same", name="a")),
        [("a",)],
        {"pad": "'same'"},
    ),
    (
        lambda: after(layers.Conv2D(4, 1, name="a"), layers.BatchNormalization(axis=1, name="bn")),
        [("a",)],
        {"bn": "axis 1"},
    ),
    (
        lambda: after(layers.Conv2D(4, 1, name="a"), layers.ReLU(name="relu"), layers.Activation("sigmoid")),
        [("a", "relu")],
        {},
    ),
    (
        lambda: after(layers.Conv1D(4, 3, name="a"), layers.BatchNormalization(name="bn"), layers.ReLU(name="relu"),
                      layers.ZeroPadding1D(1, name="pad"), layers.SeparableConv1D(4, 3, name="b"), shape=(12, 3)),
        [("a", "bn", "relu", "pad", "b")],
        {},
    ),
    (
        lambda: after(layers.Conv2D(4, 1, name="a", activation="elu"), layers.Conv2D(4, 1, activation="glu", name="b")),
        [("a", "b")],
        {},
    ),
]  # fmt: skip


def test_a_normalization_that_trains_is_listed() -> None:
    x = keras.Input(SHAPE)
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 1, name="a")(x), training=True)
    y = layers.BatchNormalization(name="other")(layers.Conv2D(4, 1, name="b")(y), training=False)
    made = report(to_remote(keras.Model(x, y), "localhost:1", fuse=True))
    assert {each.name: each.reason for each in made.local if "training=True" in each.reason}.keys() == {"bn"}


@pytest.mark.parametrize(("make", "expected", "left"), ENDS)
def test_where_a_chain_ends(
    server: RunningServer, make: Any, expected: list[tuple[str, ...]], left: dict[str, str]
) -> None:
    model = with_random_statistics(make())
    remote = to_remote(model, server.target, fuse=True)
    assert sorted(report(remote).remote) == expected
    assert {each.name for each in report(remote).local} == set(left)
    for each in report(remote).local:
        assert left[each.name] in each.reason
    x = X if len(model.input_shape) == 4 else X[:, 0]
    for found, truth in zip(keras.tree.flatten(remote(x)), keras.tree.flatten(model(x)), strict=True):
        assert apart(found, truth) < 1e-5
    assert np.allclose([float(each) for each in remote.losses], [float(each) for each in model.losses], rtol=1e-5)
    back = to_local(remote)
    assert kinds(back) == kinds(model)
    assert same_weights(back, model)


def test_a_chain_has_no_more_layers_than_a_server_takes() -> None:
    model = after(*(layers.Conv2D(1, 1, use_bias=False) for _ in range(70)))
    assert [len(each) for each in report(to_remote(model, "127.0.0.1:1", fuse=True)).remote] == [64, 6]


def test_models_within_models_and_wrappers(server: RunningServer) -> None:
    def parts() -> list[Any]:
        return [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]

    inner = after(*parts())
    x = keras.Input((2, *SHAPE))
    y = layers.TimeDistributed(inner)(x)
    both = keras.Sequential([keras.Input((*SHAPE[:2], 4)), *parts(), *parts()], name="within")
    y = layers.TimeDistributed(both)(y)
    z = keras.ops.max(y, axis=1)
    model = with_random_statistics(keras.Model(x, both(z) + z))
    given = np.random.default_rng(1).standard_normal((2, 2, *SHAPE)).astype(np.float32)
    remote = to_remote(model, server.target, fuse=True)
    assert [len(each) for each in report(remote).remote] == [3, 6]
    assert apart(remote(given), model(given)) < 1e-5
    back = to_local(remote)
    assert same_weights(back, model)
    assert np.array_equal(back(given), model(given))
    unbuilt = to_remote(keras.Sequential(parts()), server.target, fuse=True)  # without weights nothing is folded
    assert kinds(unbuilt) == ["RemoteConv2D", "BatchNormalization", "ReLU"]


@pytest.mark.parametrize("is_whole_first", [True, False])
def test_models_that_share_layers_are_followed_by_their_own(server: RunningServer, is_whole_first: bool) -> None:
    x = keras.Input(SHAPE)
    y = layers.Conv2D(4, 3, name="a")(x)
    z = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(y))
    parts = [keras.Model(x, z, name="whole"), keras.Model(x, y, name="beginning")][:: 1 if is_whole_first else -1]
    x = keras.Input(SHAPE)
    model = with_random_statistics(keras.Model(x, [part(x) for part in parts]))
    remote = to_remote(model, server.target, fuse=True)
    assert report(remote).remote == (("a",),)
    assert "called at several places" in report(remote).local[0].reason
    assert remote.get_layer("whole").get_layer("a") is remote.get_layer("beginning").get_layer("a")
    assert all(apart(*outputs) < 1e-5 for outputs in zip(remote(X), model(X), strict=True))
    assert plan(model).fused.count == plan(model).separate.count == 2


def test_it_does_not_train_unless_it_is_frozen(server: RunningServer) -> None:
    model = block()
    remote = to_remote(model, server.target, fuse=True)
    chain = remote.layers[1]
    with pytest.raises(convserve.InvalidRequestError, match=r"training=True: .*to_local") as refused:
        chain(X, training=True)
    assert refused.value.__notes__ == ["In the RemoteChain 'pad_to_stem_relu'."]
    gradients = []
    for of in (model, remote):
        of.trainable = False
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(of(x, training=True) ** 2)
        gradients.append(tape.gradient(loss, x))
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * np.abs(gradients[0]).max())
    assert {each.trainable for each in chain.layers} == {False}
    assert to_local(remote).get_layer("stem").trainable is False


def test_a_chain_made_by_hand(server: RunningServer) -> None:
    def parts() -> list[Any]:
        return [layers.Conv2D(4, 3, use_bias=False, activation="linear"), layers.BatchNormalization(), layers.ELU(0.5)]

    chain = RemoteChain(parts(), server=server.target, name="by_hand")
    model = after(*parts())
    assert chain.compute_output_shape((None, *SHAPE)) == model.output_shape
    chain.build((None, *SHAPE))
    chain.set_weights(with_random_statistics(model).get_weights())
    assert apart(chain(X), model(X)) < 1e-5
    assert RemoteChain.from_config(chain.get_config()).get_config() == chain.get_config()
    for wrong, index in (
        ([layers.BatchNormalization()], ""),
        ([layers.Conv2D(4, 3), layers.Dense(4)], "[1]"),
        ([layers.Conv2D(4, 3, activation=lambda x: x), layers.ReLU()], "[0]"),
        ([layers.Conv2D(4, 3, activity_regularizer="l2"), layers.ReLU()], "[0]"),
    ):
        with pytest.raises(convserve.InvalidRequestError, match="Expected") as refused:
            RemoteChain(wrong, server=server.target)
        assert refused.value.violations[0].field == f"layers{index}"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (lambda: [layers.Conv2D(4, 3), layers.ZeroPadding2D()], r"layers\[1\], ZeroPadding2D: not exactly one layer"),
        (lambda: [layers.BatchNormalization(), layers.Conv2D(4, 3)], r"layers\[0\], BatchNormalization: it follows no"),
        (lambda: [layers.ZeroPadding2D(), layers.Conv2D(4, 3, padding="same")], "pads with 'same'"),
        (lambda: [layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()], "activation 'relu' already"),
        (lambda: [layers.Conv2D(4, 3), layers.BatchNormalization(axis=1)], "its axis 1 is not that"),
    ],
)
def test_layers_that_become_no_chain_are_refused_when_it_is_made(parts: Callable[[], list[Any]], words: str) -> None:
    with pytest.raises(convserve.InvalidRequestError, match=f"layers: Expected .*{words}"):
        RemoteChain(parts())


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [layers.ZeroPadding1D(), layers.Conv1D(4, 3), layers.SeparableConv1D(4, 3), layers.ReLU()],
        lambda: [
            layers.Conv2D(8, 3, groups=4),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.BatchNormalization(),
        ],
        lambda: [
            layers.SeparableConv2D(6, 3, depth_multiplier=2, use_bias=False),
            layers.BatchNormalization(scale=False),
        ],
    ],
)
def test_layers_that_become_a_chain_are_taken(parts: Callable[[], list[Any]]) -> None:
    assert len(RemoteChain(parts()).layers) == len(parts())


def test_weights_of_a_model_with_branches_keep_their_order(server: RunningServer) -> None:
    x = keras.Input(SHAPE)
    left, right = x, x
    for number in range(2):  # all kernels of a branch have one shape, so that Keras sees no confusion of them
        left = layers.Conv2D(3, 3, padding="same", name=f"left_{number}")(left)
        right = layers.Conv2D(3, 3, padding="same", name=f"right_{number}")(right)
    model = with_random_statistics(keras.Model(x, layers.Add()([left, right])))
    remote = to_remote(model, server.target, fuse=True)
    assert len(report(remote).remote) == 2
    for one, other in zip(remote.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    halves = [weight / 2 for weight in model.get_weights()]
    model.set_weights(halves)
    remote.set_weights(halves)
    assert apart(remote.predict(X, verbose=0), model.predict(X, verbose=0)) < 1e-5
    same_weights(to_local(remote), model)
    with pytest.raises(ValueError, match="expecting 8 weights"):
        remote.set_weights(halves[1:])
    outer = to_remote(keras.Sequential([keras.Input(SHAPE), model]), server.target, fuse=True)
    outer.set_weights(halves)
    assert apart(outer.predict(X, verbose=0), model.predict(X, verbose=0)) < 1e-5


def test_a_chain_has_a_name_that_no_other_layer_has(server: RunningServer) -> None:
    parts = [layers.Conv2D(2, 1, name="a"), layers.ReLU(name="b"), layers.Flatten(name="a_to_b")]
    model = keras.Sequential([keras.Input(SHAPE), *parts])
    remote = to_remote(model, server.target, fuse=True)
    assert [layer.name for layer in remote.layers] == ["a_to_b_chain", "a_to_b"]
    np.testing.assert_allclose(remote.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in to_local(remote).layers] == ["a", "b", "a_to_b"]
