"""RemoteChain: several layers of Keras' that only follow each other, computed by a server in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from convserve.errors import InvalidRequestError, short_repr
from convserve.keras.layers.remote_layer import RemoteLayer, tensors
from convserve.keras.layers.steps import KINDS, Steps, served, step_of, weights_of, why_no_chain
from convserve.layers.keras_layers import CONVOLUTIONS


@keras.saving.register_keras_serializable(package="convserve")
class RemoteChain(RemoteLayer, keras.layers.Layer):  # type: ignore[misc]
    """Keras' layers that follow each other, whose forward pass a server computes in one call.

    `to_remote(model, fuse=True)` makes it. Its layers are Keras' own, with their names, weights and regularizers; they
    are saved, loaded and set as in any layer that has others. For a call the normalizations' weights, as they are then,
    become part of the convolutions', so a BatchNormalization normalizes as in inference. Activation and padding become
    part of them too. It trains as little as RemoteConv2D, which says what else holds: `training=True` is refused unless
    all layers with weights are frozen.

    Attributes:
        layers: Its layers, in order.

    Examples:
        >>> from keras import layers
        >>> chain = RemoteChain([layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()])
        >>> y = chain(x)
    """

    __module__ = "convserve.keras"  # Keras writes it into saved models

    def __init__(self, layers: Sequence[Any], **kwargs: Any) -> None:
        """Makes the layer of others, which are not built yet.

        Args:
            layers: Convolutions, of `keras.layers` itself, and what stands around them: ZeroPadding2D before one,
                BatchNormalization and an activation layer behind one. Only the last may have an activation that a
                server does not apply, and none an activity_regularizer.
            **kwargs: The arguments of RemoteConv2D that are not Conv2D's own.

        Raises:
            InvalidRequestError: For other layers, or as RemoteConv2D.
        """
        layers = list(layers) if isinstance(layers, Iterable) else [layers]
        if not any(KINDS.get(type(layer)) in CONVOLUTIONS for layer in layers):
            received = ", ".join(type(layer).__name__ for layer in layers) or "none"
            raise InvalidRequestError.for_field("layers", "layers with a convolution among them", received)
        for index, layer in enumerate(layers):
            is_whole = index == len(layers) - 1 or not hasattr(layer, "activation") or served(layer.activation)
            # Keras adds the loss of an output where it calls the layer, which it does not within a chain.
            if step_of(layer) is None or not is_whole or layer.activity_regularizer is not None:
                expected = "a layer of Keras' own that a server computes whole, and without an activity_regularizer"
                raise InvalidRequestError.for_field(f"layers[{index}]", expected, short_repr(layer))
        if reason := why_no_chain([step for layer in layers if (step := step_of(layer))]):
            expected = "layers that become one chain of convolutions"
            raise InvalidRequestError.for_field("layers", expected, reason)
        super().__init__(**{"dtype": layers[0].dtype_policy, **kwargs})
        for layer in layers:
            if not layer.built:  # as RemoteLayer.add_weight
                layer.add_weight = functools.partial(layer.add_weight, autocast=False)
        self.layers = layers

    def build(self, input_shape: Any) -> None:
        """Builds its layers."""
        for layer in self.layers:
            if not layer.built:
                layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns what the last layer returns for what the others return."""
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` takes: its layers' configurations, and where the server is."""
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        for layer in layers:
            layer.pop("build_config", None)  # the chain builds them
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Returns the layer that `get_config` describes."""
        layers = [keras.saving.deserialize_keras_object(each) for each in config["layers"]]
        return super().from_config({**config, "layers": layers})

    def _trains(self) -> bool:
        return self.trainable and any(layer.trainable and layer.weights for layer in self.layers)

    def _served(self) -> tuple[Steps, list[Any], Callable[[Any], Any] | None]:
        steps, weights = [], []
        for layer in self.layers:
            step = step_of(layer)
            assert step is not None  # noqa: S101 (it was one when the chain was made)
            steps.append(step)
            weights += tensors(weights_of(layer, step), layer.variable_dtype)
        activation = getattr(self.layers[-1], "activation", None)
        return tuple(steps), weights, None if served(activation) else activation
