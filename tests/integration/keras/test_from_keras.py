"""Layers of Keras' as convserve's: only what computes as `keras.layers.Conv2D` does is taken for one."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import convserve
from convserve.keras import RemoteConv2D
from tests.support.keras.truth import keras

layers = keras.layers
X = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)


def built(kind: Any = layers.Conv2D, *arguments: Any, **parameters: Any) -> Any:
    """Returns a layer that has weights for three channels, none of them zero."""
    layer = kind(*(arguments or (4, 3)), **parameters)
    layer.build((None, 8, 8, 3))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=each.shape) for each in layer.get_weights()])
    return layer


class Standardized(layers.Conv2D):
    """A computation of its own."""

    def call(self, inputs: Any) -> Any:
        kernel = self.kernel - keras.ops.mean(self.kernel, (0, 1, 2))
        return keras.ops.conv(inputs, kernel) + self.bias


class Scaled(layers.Conv2D):
    """A kernel of its own."""

    @property
    def kernel(self) -> Any:
        return super().kernel * 2


class Renamed(layers.Conv2D):
    """Nothing of its own, of which nothing here can be sure."""


class Conv2D(layers.Conv2D):
    """A class that calls itself Conv2D."""


def replaced(method: str) -> Any:
    """Returns a Conv2D of which a method that computes was replaced."""
    layer = built()
    setattr(layer, method, types.MethodType(lambda _, inputs, *__: inputs, layer))
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        *(built(kind) for kind in (Standardized, Scaled, Renamed, Conv2D)),
        Standardized(4, 3),
        *map(replaced, ("call", "convolution_op")),
        layers.Conv2DTranspose(4, 3), layers.Conv3D(4, 3), layers.Dense(4),
        layers.SpectralNormalization(layers.Conv2D(4, 3)), layers.TimeDistributed(layers.Conv2D(4, 3)),
        keras.Sequential([layers.Conv2D(4, 3)]), None, "Conv2D",
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_what_is_no_conv2d_itself_is_refused(layer: Any) -> None:
    for take in (convserve.Layer.from_keras, convserve.Conv2D.from_keras):
        with pytest.raises(convserve.InvalidConfigurationError, match=r"layer: Expected a keras\.layers\.Conv2D") as e:
            take(layer)
        assert type(layer).__name__ in str(e.value)


@pytest.mark.parametrize("kind", [layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Conv1D])
def test_other_convolutions_have_no_one_configuration(kind: Any) -> None:
    with pytest.raises(convserve.InvalidConfigurationError, match=r"layer: Expected a keras\.layers\.Conv2D itself"):
        convserve.Conv2D.from_keras(kind(kernel_size=3, **({} if kind is layers.DepthwiseConv2D else {"filters": 4})))


def test_a_serialized_subclass_is_refused_and_its_configuration_is_the_callers_word() -> None:
    with pytest.raises(convserve.InvalidConfigurationError, match="class_name"):
        convserve.Conv2D.from_keras(keras.saving.serialize_keras_object(Standardized(4, 3)))
    assert convserve.Conv2D.from_keras(Renamed(4, 3, name="a").get_config()) == convserve.Conv2D(4, 3, name="a")


def test_a_remote_layer_is_a_conv2d() -> None:
    remote = built(RemoteConv2D, name="a", activation="relu", dtype="mixed_float16")
    twin = built(layers.Conv2D, name="a", activation="relu", dtype="mixed_float16")
    assert convserve.Layer.from_keras(remote).digest == convserve.Layer.from_keras(twin).digest


class Drawn(keras.initializers.Initializer):
    """An initializer of the user's own."""

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> Any:
        return keras.ops.ones(shape, dtype)


class Penalty(keras.regularizers.Regularizer):
    """A regularizer of the user's own, without a `get_config`."""

    def __call__(self, x: Any) -> Any:
        return keras.ops.sum(x)


class Halved(keras.constraints.Constraint):
    """A constraint of the user's own."""

    def __call__(self, w: Any) -> Any:
        return w / 2


@pytest.mark.parametrize("drawn", [Drawn(), Drawn, keras.ops.ones])
def test_what_drew_the_weights_of_a_built_layer_does_not_matter(client: convserve.Client, drawn: Any) -> None:
    parameters = {"kernel_initializer": drawn, "bias_initializer": drawn}
    layer = built(**parameters)
    np.testing.assert_allclose(client.convolve(convserve.Layer.from_keras(layer), X).output, layer(X), atol=1e-5)
    with pytest.warns(UserWarning, match="^kernel_initializer, bias_initializer: left out"):
        assert convserve.Conv2D.from_keras(layer) == convserve.Conv2D(4, 3, name=layer.name)
    for unbuilt in (layers.Conv2D(4, 3, **parameters), layers.Conv2D(4, 3, bias_initializer=drawn)):
        with pytest.raises(convserve.InvalidConfigurationError, match="_initializer: Expected"):
            convserve.Layer.from_keras(unbuilt)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((f"{what}_regularizer", Penalty()) for what in ("kernel", "bias", "activity")),
        ("kernel_regularizer", keras.ops.sum), ("kernel_constraint", Halved()),
        ("bias_constraint", lambda w: w / 2),
    ],
)  # fmt: skip
def test_what_is_beside_outputs_is_left_out_of_a_built_layer_with_a_word(
    client: convserve.Client, name: str, value: Any
) -> None:
    layer = built(**{name: value})
    with pytest.warns(UserWarning, match=f"^{name}: left out"):
        taken = convserve.Layer.from_keras(layer)
    np.testing.assert_allclose(client.convolve(taken, X).output, layer(X), atol=1e-5)
    for take in (convserve.Layer.from_keras, convserve.Conv2D.from_keras):
        with pytest.raises(convserve.InvalidConfigurationError, match=f"{name}: Expected"):
            take(layers.Conv2D(4, 3, **{name: value}))


def test_an_activation_of_the_users_own_is_refused_of_a_built_layer_too() -> None:
    with pytest.raises(convserve.InvalidConfigurationError, match="activation: Expected"):
        convserve.Layer.from_keras(built(activation=lambda x: x * 2, kernel_initializer=Drawn()))


def test_an_orthogonal_regularizer_leaves_outputs_what_they_are(client: convserve.Client) -> None:
    orthogonal = keras.regularizers.OrthogonalRegularizer(0.5, "columns")
    layer = built(kernel_regularizer=orthogonal, bias_regularizer=orthogonal, activity_regularizer="l2")
    result = client.convolve(convserve.Layer.from_keras(layer), X)
    np.testing.assert_allclose(result.output, layer(X), atol=1e-5)
    (losses,) = result.losses
    assert (losses.kernel, losses.bias) == (None, None)
    assert losses.activity is not None
    stored = client.put(convserve.Layer.from_keras(layer))
    assert stored.update_weights(*layer.get_weights())[1].kernel is None
