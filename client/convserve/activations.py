"""Keras' activations as values. In Keras they are functions; here each is a value that the server looks up by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from convserve._keras_object import KerasObject, flag, number, output_axis
from convserve.errors import InvalidConfigurationError, short_repr
from convserve.v1 import activation_pb2

# keras.layers that stand for an activation function: the function's name, and its parameters.
_LAYERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReLU": ("relu", ("max_value", "negative_slope", "threshold")),
    "LeakyReLU": ("leaky_relu", ("negative_slope",)),
    "ELU": ("elu", ("alpha",)),
    "Softmax": ("softmax", ("axis",)),
}


class Activation(KerasObject):
    """One of `keras.activations`."""

    family = "activation"
    has_class_names = False
    message = activation_pb2.Activation
    changes_shape: ClassVar[bool] = False

    @classmethod
    def _named(cls, identifier: object) -> tuple[str, Mapping[str, Any]]:
        module = getattr(identifier, "__module__", "") or ""
        if inspect.isfunction(identifier) and module.startswith(("keras.src.activations", "keras.activations")):
            return identifier.__name__, {}
        # keras.ops has functions of the same names, some with other defaults: those of gelu and its like are told.
        if inspect.isfunction(identifier) and module.startswith("keras.src.ops."):
            given = inspect.signature(identifier).parameters.values()
            return identifier.__name__, {each.name: each.default for each in given if each.default is not each.empty}
        name, config = super()._named(identifier)
        if name in _LAYERS and not isinstance(identifier, str):
            function, parameters = _LAYERS[name]
            # A layer's configuration has its name and dtype beside the function's parameters.
            return function, {key: config[key] for key in parameters if key in config}
        if name == "Activation" and config:  # keras.layers.Activation
            return cls._named(config.get("activation"))
        return name, config

    def to_keras_config(self) -> dict[str, Any] | str:
        """Returns Keras' form: a name, or for parameters other than the defaults the layer that carries them.

        Raises InvalidConfigurationError if Keras has no serializable form for these parameters.
        """
        if self.parameters == {field.name: field.default for field in dataclasses.fields(self)}:
            return self.keras_name
        for layer, (function, parameters) in _LAYERS.items():
            if function == self.keras_name:
                config = {key: getattr(self, key) for key in parameters}
                return {"module": "keras.layers", "class_name": layer, "config": config, "registered_name": None}
        received = f"{short_repr(self)}: Keras has no layer for it"
        raise InvalidConfigurationError.for_field("activation", "an activation that Keras can serialize", received)


class ReLU(Activation):
    """max(x, 0), with a slope below `threshold` and an upper limit."""

    keras_name = "relu"
    negative_slope: float = number(0.0)
    max_value: float | None = number(None)
    threshold: float = number(0.0)


class LeakyReLU(Activation):
    """X where positive, negative_slope * x elsewhere."""

    keras_name = "leaky_relu"
    negative_slope: float = number(0.2)


class Softmax(Activation):
    """Exponentials along an axis, divided by their sum."""

    axis: int = output_axis()


class LogSoftmax(Activation):
    """The logarithm of softmax."""

    axis: int = output_axis()


class Sparsemax(Activation):
    """Euclidean projection onto the simplex along an axis."""

    axis: int = output_axis()


class GLU(Activation):
    """The first half along an axis times the sigmoid of the second; it halves that axis of the output."""

    changes_shape = True
    axis: int = output_axis()


class CELU(Activation):
    """Continuously differentiable exponential linear unit."""

    alpha: float = number(1.0)


class ELU(Activation):
    """Exponential linear unit."""

    alpha: float = number(1.0)


class Squareplus(Activation):
    """(x + sqrt(x² + b)) / 2."""

    b: float = number(4.0)


class SoftShrink(Activation):
    """X moved towards 0 by the threshold."""

    threshold: float = number(0.5)


class HardShrink(Activation):
    """X where abs(x) exceeds the threshold, 0 elsewhere."""

    threshold: float = number(0.5)


class GELU(Activation):
    """X times the standard normal distribution function of x."""

    approximate: bool = flag(False)


class Threshold(Activation):
    """X above the threshold, `default_value` elsewhere. As in Keras, neither has a default."""

    threshold: float = number(None, required=True)
    default_value: float = number(None, required=True)


_WITHOUT_PARAMETERS = {
    "linear": (), "relu6": (), "selu": (), "softplus": (), "softsign": (), "sparse_plus": (), "silu": ("swish",),
    "tanh": (), "tanh_shrink": (), "hard_tanh": (), "sigmoid": (), "sparse_sigmoid": (), "exponential": (),
    "hard_sigmoid": (), "hard_silu": ("hard_swish",), "mish": (), "log_sigmoid": (),
}  # fmt: skip

for _name, _aliases in _WITHOUT_PARAMETERS.items():
    type(_name, (Activation,), {"aliases": _aliases, "__module__": __name__})
