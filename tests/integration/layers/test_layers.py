"""Stored layers through both clients, against a real server and against Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import keras
import numpy as np
import pytest

from convserve import (
    Conv2D,
    InvalidConfigurationError,
    InvalidRequestError,
    InvalidTensorError,
    InvalidWeightsError,
    Layer,
    LayerNotFoundError,
    Losses,
    constraints,
)
from convserve.layers.layer import planned
from tests.support.either_client import EITHER_CLIENT
from tests.support.keras.truth import keras_value
from tests.support.servers.server_process import RunningServer

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 7, 7, 4)).astype("f4")
CONFIG = Conv2D(6, 3, data_format="channels_last", dtype="float32", activation="relu", padding="same")
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype("f4")
BIAS = RNG.normal(size=6).astype("f4")


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Any]:
    with request.param(server.target) as connected:
        yield connected


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"layers/{uuid4().hex}"


# Put, find, read, delete


def test_a_stored_layer_is_called_like_a_function(client: Any, name: str) -> None:
    layer = client.put(CONFIG, kernel=KERNEL, bias=BIAS, name=name)
    y = layer(X)
    np.testing.assert_array_equal(
        y, client.conv2d(X, 6, 3, kernel=KERNEL, bias=BIAS, padding="same", activation="relu")
    )
    assert (layer.name, layer.config, layer.kernel_shape) == (name, CONFIG, (3, 3, 4, 6))
    assert layer.digest == Layer(CONFIG, KERNEL, BIAS).digest
    assert layer(X, output_dtype="float64").dtype == np.float64


def test_a_layer_is_found_by_its_name_and_read(client: Any, name: str) -> None:
    client.put(CONFIG, kernel=KERNEL, bias=BIAS, name=name)
    found = client.layer(name)
    assert (found.name, found.config, found.local) == (name, CONFIG, None)
    np.testing.assert_array_equal(found(X), client.convolve(Layer(CONFIG, KERNEL, BIAS), X).output)
    kernel, bias = found.weights()
    np.testing.assert_array_equal(kernel, KERNEL)
    np.testing.assert_array_equal(bias, BIAS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
def test_weights_are_read_as_the_policy_keeps_them(client: Any, dtype: str, name: str) -> None:
    given = Layer(CONFIG.replace(dtype=dtype, use_bias=False), KERNEL)
    client.put(given, name=name)
    kernel, bias = client.layer(name).weights()
    assert (kernel.dtype, bias) == (given.kernel.dtype, None)
    np.testing.assert_array_equal(kernel, given.kernel)


def test_large_weights_go_and_come_in_pieces(client: Any, name: str) -> None:
    config = Conv2D(1024, (15, 1), use_bias=False)
    kernel = np.random.default_rng(4).integers(-9, 9, (15, 1, 1024, 1024)).astype("f4")
    assert kernel.nbytes == 60 * 2**20
    layer = client.put(config, kernel=kernel, name=name)
    read, _ = client.layer(name).weights()
    np.testing.assert_array_equal(read, kernel)
    np.testing.assert_array_equal(layer(np.ones((1, 15, 1, 1024), "f4")).ravel(), kernel.sum(axis=(0, 1, 2)))
    client.delete(layer)


def test_drawn_weights_come_back_with_the_seed_that_draws_them_again(client: Any) -> None:
    config = CONFIG.replace(kernel_initializer="he_normal", bias_initializer="random_uniform")
    first, second = (client.put(config, input_channels=4) for _ in range(2))
    assert first.digest != second.digest
    seeds = {first.config.kernel_initializer.seed, first.config.bias_initializer.seed}
    assert None not in seeds
    again = client.put(first.config, input_channels=4)
    assert (again.digest, again.config) == (first.digest, first.config)
    kernel, bias = first.weights()
    assert Layer(first.config, kernel, bias).digest == first.digest
    np.testing.assert_array_equal(first(X), client.convolve(first.config, X).output)


def test_a_seed_and_channels_may_be_given(client: Any) -> None:
    seeded = [client.put(CONFIG, input_channels=4, seed=seed) for seed in (1, 1, 2)]
    assert seeded[0].digest == seeded[1].digest != seeded[2].digest
    assert seeded[0].config.kernel_initializer.seed == 1
    by_shape = client.put(CONFIG.replace(input_shape=(None, None, 4)), seed=1)
    assert by_shape.digest == seeded[0].digest
    first = CONFIG.replace(data_format="channels_first", input_shape=(4, None, None))
    assert client.put(first, seed=1).kernel_shape == (3, 3, 4, 6)
    with pytest.raises(InvalidWeightsError, match="input_channels="):
        client.put(CONFIG)
    with pytest.raises(InvalidWeightsError, match="groups=2"):
        client.put(CONFIG.replace(groups=2), input_channels=3)


def test_what_the_caller_does_to_its_array_later_does_not_change_the_layer(client: Any) -> None:
    kernel, bias = KERNEL.copy(), BIAS.copy()
    layer = client.put(CONFIG, kernel=kernel, bias=bias)
    expected = layer(X)
    kernel[:], bias[:] = 0, 0
    client.delete(layer)
    np.testing.assert_array_equal(layer(X), expected)  # it was sent again
    np.testing.assert_array_equal(layer.weights()[0], KERNEL)
    for weight in layer.weights():
        with pytest.raises(ValueError, match="read-only"):
            weight[:] = 0


def test_a_name_moves_and_the_old_layer_stays(client: Any, name: str) -> None:
    old = client.put(CONFIG, kernel=KERNEL, bias=BIAS, name=name)
    before = old(X)
    new = client.put(CONFIG, kernel=2 * KERNEL, bias=BIAS, name=name)
    assert client.layer(name).digest == new.digest
    np.testing.assert_array_equal(old(X), before)
    assert old.digest in {each.digest for each in client.layers()}
    assert [each.digest for each in client.layers(name)] == [new.digest]
    client.put(CONFIG, kernel=KERNEL, bias=BIAS, name=name)
    assert client.layer(name).digest == old.digest


def test_layers_are_listed_by_prefix_and_missing_ones_found_at_once(client: Any, name: str) -> None:
    layers = [Layer(CONFIG, KERNEL * RNG.normal(), BIAS) for _ in range(4)]
    for index in (0, 2):
        client.put(layers[index], name=f"{name}/{index}")
    listed = client.layers(f"{name}/")
    assert {each.digest for each in listed} == {layers[0].digest, layers[2].digest}
    np.testing.assert_array_equal(listed[0](X), client.convolve(listed[0], X).output)
    assert client.missing(layers) == [layers[1], layers[3]]
    client.delete(f"{name}/0")
    client.delete(listed[-1] if listed[-1].digest == layers[2].digest else listed[0])
    assert client.layers(f"{name}/") == []
    assert client.missing(layers) == layers


def test_what_is_not_there_is_said(client: Any, name: str) -> None:
    for ask in (client.layer, client.delete):
        with pytest.raises(LayerNotFoundError, match="leads nowhere") as missing:
            ask(name)
        assert missing.value.layer == name
    gone = client.put(CONFIG, kernel=KERNEL, bias=BIAS * RNG.normal(), name=name)
    found = client.layer(name)
    client.delete(gone)
    with pytest.raises(LayerNotFoundError, match="put it"):
        client.delete(gone)
    with pytest.raises(LayerNotFoundError, match=gone.digest.hex()):
        found(X)  # nobody has its weights any more
    assert gone(X).shape == (2, 7, 7, 6)


def test_wrong_calls_of_a_stored_layer_are_refused_before_anything_is_sent(client: Any) -> None:
    layer = client.put(CONFIG, kernel=KERNEL, bias=BIAS)
    with pytest.raises(InvalidWeightsError, match=r"^input: .* kernel takes, 4\. Received 3 "):
        layer(X[..., :3])
    with pytest.raises(InvalidTensorError, match="4 dimensions"):
        layer(X[0])
    with pytest.raises(InvalidRequestError, match=r"Conv2D with or without kernel="):
        client.put(Layer(CONFIG, KERNEL, BIAS), kernel=KERNEL)
    with pytest.raises(InvalidConfigurationError, match="identity"):
        client.put(CONFIG.replace(kernel_initializer="identity"), input_channels=4)


# Chains and plans


def test_a_chain_of_stored_and_inline_layers_is_one_step_after_the_other(client: Any) -> None:
    config = CONFIG.replace(kernel_regularizer="l2", activity_regularizer="l1", bias_regularizer="l1")
    first = client.put(config, kernel=KERNEL, bias=BIAS)
    second = Layer(Conv2D(3, 1, strides=2, use_bias=False), RNG.normal(size=(1, 1, 6, 3)))
    third = client.put(Conv2D(2, 2, kernel_regularizer="l1", trainable=False), input_channels=3)
    chained = client.convolve([first, second, third], X)
    x, losses = X, []
    for layer in (first, second, third):
        step = client.convolve(layer, x)
        x, losses = step.output, [*losses, *step.losses]
    np.testing.assert_allclose(chained.output, x, rtol=1e-5, atol=1e-6)
    for found, expected in zip(chained.losses, losses, strict=True):
        np.testing.assert_allclose(
            *([np.nan if each is None else each for each in vars(side).values()] for side in (found, expected)),
            rtol=1e-6,
        )
    assert chained.losses[1:] == (Losses(), Losses())
    assert None not in vars(chained.losses[0]).values()
    assert chained.layers == (None, None, None)

    plan = client.plan([first, second, third], X.shape)
    assert plan.admitted
    assert plan.output_shape == chained.output.shape
    assert [each.output_shape for each in plan.layers] == [(2, 7, 7, 6), (2, 4, 4, 3), (2, 3, 3, 2)]
    assert plan.parameters == KERNEL.size + 6 + 18 + 2 * 2 * 3 * 2 + 2
    assert plan.output_bytes == chained.output.nbytes
    assert dataclasses.replace(plan, admitted=None) == planned([first, second, third], X.shape, "float32", None)


def test_a_chains_shapes_are_checked_before_anything_is_computed(client: Any) -> None:
    first = client.put(CONFIG, kernel=KERNEL, bias=BIAS)
    wrong = client.put(Conv2D(2, 1, use_bias=False), kernel=np.ones((1, 1, 5, 2), "f4"))
    large = client.put(Conv2D(2, 8, use_bias=False), kernel=np.ones((8, 8, 6, 2), "f4"))
    for ask in (lambda layers: client.convolve(layers, X), lambda layers: client.plan(layers, X.shape)):
        with pytest.raises(InvalidWeightsError, match=r"^layers\[1\]\.input: .* kernel takes, 5\. Received 6 "):
            ask([first, wrong])
        with pytest.raises(InvalidTensorError, match=r"^layers\[1\]\.input: "):
            ask([first, large])


# UpdateWeights, against Keras' own constraints and regularizers

CONSTRAINTS = [
    constraints.MaxNorm(max_value=0.5),
    constraints.MaxNorm(max_value=1.5, axis=(0, 1, 2)),
    constraints.MinMaxNorm(min_value=0.9, max_value=1.1, rate=0.7, axis=(0, 1, 2)),
    constraints.MinMaxNorm(),
    constraints.NonNeg(),
    constraints.UnitNorm(),
    constraints.UnitNorm(axis=(0, 1, 2)),
]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)
def test_an_update_applies_keras_constraints(client: Any, constraint: Any, name: str) -> None:
    on_bias = constraint if constraint.parameters.get("axis", (0,)) == (0,) else None
    config = CONFIG.replace(kernel_constraint=constraint, bias_constraint=on_bias)
    old = client.put(config, kernel=KERNEL, bias=BIAS, name=name)
    np.testing.assert_array_equal(client.layer(name).weights()[0], KERNEL)  # a put applies none
    made, losses = old.update_weights(3 * KERNEL, bias=3 * BIAS)
    assert losses == Losses()
    kernel, bias = client.layer(name).weights()
    np.testing.assert_allclose(kernel, np.asarray(keras_value(constraint)(3 * KERNEL)), rtol=1e-6)
    expected = 3 * BIAS if on_bias is None else np.asarray(keras_value(constraint)(3 * BIAS))
    np.testing.assert_allclose(bias, expected, rtol=1e-6)
    assert Layer(config, kernel, bias).digest == made.digest == client.layer(name).digest != old.digest
    assert (made.name, made.config) == (name, config)
    np.testing.assert_array_equal(old.weights()[0], KERNEL)
    np.testing.assert_array_equal(made(X), client.convolve(Layer(config, kernel, bias), X).output)


@pytest.mark.parametrize("regularizer", ["l1", "l2", {"class_name": "L1L2", "config": {"l1": 0.3, "l2": 0.2}}], ids=str)
@pytest.mark.parametrize("trainable", [True, False])
def test_an_update_returns_the_losses_of_what_it_made(client: Any, regularizer: Any, trainable: bool) -> None:
    constraint = constraints.NonNeg()
    config = CONFIG.replace(
        kernel_regularizer=regularizer, bias_regularizer="l1", activity_regularizer="l2", kernel_constraint=constraint,
        trainable=trainable,
    )  # fmt: skip
    made, losses = client.put(config, kernel=KERNEL, bias=BIAS).update_weights(-KERNEL, bias=BIAS)
    called = client.convolve(made, X).losses[0]
    if not trainable:
        assert losses == Losses()
        assert called == Losses(activity=called.activity)
        return
    kernel = np.asarray(keras_value(constraint)(-KERNEL))
    np.testing.assert_allclose(losses.kernel, float(keras.regularizers.get(regularizer)(kernel)), rtol=1e-6)
    np.testing.assert_allclose(losses.bias, float(keras.regularizers.get("l1")(BIAS)), rtol=1e-6)
    assert losses.activity is None
    np.testing.assert_allclose((called.kernel, called.bias), (losses.kernel, losses.bias), rtol=1e-6)


def test_an_update_with_weights_that_do_not_fit_changes_nothing(client: Any, name: str) -> None:
    layer = client.put(CONFIG, kernel=KERNEL, bias=BIAS, name=name)
    with pytest.raises(InvalidWeightsError, match="kernel"):
        layer.update_weights(KERNEL[:2], bias=BIAS)
    with pytest.raises(InvalidWeightsError, match="bias"):
        layer.update_weights(KERNEL)
    assert client.layer(name).digest == layer.digest


def test_an_update_starts_from_its_own_layer_wherever_its_name_leads_now(client: Any, name: str) -> None:
    layer = client.put(CONFIG, kernel=KERNEL, bias=BIAS, name=name)
    client.put(CONFIG.replace(activation="linear", strides=2), kernel=KERNEL, bias=BIAS, name=name)
    updated, _ = layer.update_weights(2 * KERNEL, BIAS)
    assert updated.config == CONFIG
    assert client.layer(name).digest == updated.digest == Layer(CONFIG, 2 * KERNEL, BIAS).digest
