"""Keras' convolutions, each computed by a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras

from convserve.keras.layers.remote_layer import RemoteLayer, tensors
from convserve.keras.layers.steps import Steps, convolution_step, weights_of

REMOTE: dict[Any, Any] = {}
"""Of each convolution of Keras' the remote one."""


class _RemoteConvolution(RemoteLayer):
    """A convolution, with its kind's name."""

    kind: ClassVar[str]
    activation: Any
    variable_dtype: str

    def _served(self) -> tuple[Steps, list[Any], Callable[[Any], Any] | None]:
        step = convolution_step(self, self.kind)
        weights = tensors(weights_of(self, step), self.variable_dtype)
        is_served = dict(step.attributes)["activation"] is not None
        return (step,), weights, None if is_served else self.activation


def _sibling(remote: Any) -> Any:
    """Makes known a class that is named for the one of Keras' which it stands for."""
    remote.kind = remote.__name__.removeprefix("Remote")
    remote.__module__ = "convserve.keras"  # Keras writes it into saved models
    REMOTE[getattr(keras.layers, remote.kind)] = remote
    return keras.saving.register_keras_serializable(package="convserve")(remote)


@_sibling
class RemoteConv2D(_RemoteConvolution, keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` whose forward pass a server computes.

    It is a Conv2D, so building, saving, loading, weights, regularizers' losses and the refusal of wrong arguments are
    Keras' own. The weights live in its variables. The server gets them with the first call, and again after they
    changed; in between, calls name them by their digest. An activation that is no plain function of
    `keras.activations` is applied here, to what the server returns.

    It does not train: `training=True` is refused unless the layer is frozen (`trainable=False`), and so is a gradient
    through it. Through a frozen layer the gradient for its input is computed in this process, as Keras computes it, so
    what is before it can train, and within a `tf.GradientTape` a frozen model can `predict`.

    Weights files (`save_weights`) go by the names of classes: load one before `to_remote`, write one after `to_local`.
    `Model.export` is refused, as a graph holds no connection: export what `to_local` returns. A process that loads a
    saved model imports `convserve.keras` first; Keras itself imports no such module.

    In a graph (`predict`, `tf.function`, `tf.data`) TensorFlow turns what a call raises into an error of its own, with
    the name of the class and the text in it; outside of one it is one of `convserve.errors`.

    Examples:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), RemoteConv2D(64, 3, server="localhost:50051")])
        >>> y = model.predict(x)
    """


@_sibling
class RemoteDepthwiseConv2D(_RemoteConvolution, keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """`keras.layers.DepthwiseConv2D` whose forward pass a server computes, as RemoteConv2D."""


@_sibling
class RemoteSeparableConv2D(_RemoteConvolution, keras.layers.SeparableConv2D):  # type: ignore[misc]
    """`keras.layers.SeparableConv2D` whose forward pass a server computes in one call, as RemoteConv2D."""


@_sibling
class RemoteConv1D(_RemoteConvolution, keras.layers.Conv1D):  # type: ignore[misc]
    """`keras.layers.Conv1D` whose forward pass a server computes, as RemoteConv2D."""


@_sibling
class RemoteDepthwiseConv1D(_RemoteConvolution, keras.layers.DepthwiseConv1D):  # type: ignore[misc]
    """`keras.layers.DepthwiseConv1D` whose forward pass a server computes, as RemoteConv2D."""


@_sibling
class RemoteSeparableConv1D(_RemoteConvolution, keras.layers.SeparableConv1D):  # type: ignore[misc]
    """`keras.layers.SeparableConv1D` whose forward pass a server computes in one call, as RemoteConv2D."""


LOCAL: dict[Any, Any] = {remote: local for local, remote in REMOTE.items()}
"""Of each remote convolution Keras' own."""
