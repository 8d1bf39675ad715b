"""The client's values as Keras' own objects: from an allow-list, by typed parameters, never by a deserializer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from convserve.activations import GLU, Activation, Sparsemax
from convserve.constraints import Constraint
from convserve.initializers import Initializer
from convserve.regularizers import Regularizer

Function = Callable[[Any], Any]


def keras_initializer(initializer: Initializer) -> Any:
    """Returns Keras' initializer."""
    return getattr(keras.initializers, type(initializer).__name__)(**initializer.parameters)


def keras_regularizer(regularizer: Regularizer) -> Function:
    """Returns Keras' regularizer."""
    return getattr(keras.regularizers, type(regularizer).__name__)(**regularizer.parameters)  # type: ignore[no-any-return]


def keras_constraint(constraint: Constraint) -> Function:
    """Returns Keras' constraint."""
    parameters = {name: list(value) if name == "axis" else value for name, value in constraint.parameters.items()}
    return getattr(keras.constraints, type(constraint).__name__)(**parameters)  # type: ignore[no-any-return]


def keras_activation(activation: Activation) -> Function:
    """Returns Keras' activation function with its parameters bound."""
    if isinstance(activation, GLU):
        # keras.activations.glu asks for the axis' size while it is traced, where height and width are not known.
        return lambda x: _glu(*tf.split(x, 2, axis=activation.axis))
    function = getattr(keras.activations, activation.keras_name)
    parameters = activation.parameters
    if isinstance(activation, Sparsemax):
        return lambda x: _of_open_shape(function, x, parameters)
    return lambda x: function(x, **parameters)


def _of_open_shape(function: Any, x: Any, parameters: dict[str, Any]) -> Any:
    """Applies a function that must not know any size of its input while it is traced.

    keras.activations.sparsemax makes a range in its input's type, and TensorFlow refuses to trace one in float16 whose
    length it knows. It computes it all the same.
    """
    hidden = tf.compat.v1.placeholder_with_default(x, [None] * x.shape.rank)
    return tf.ensure_shape(function(hidden, **parameters), x.shape)


def _glu(gated: Any, gate: Any) -> Any:
    return gated * tf.sigmoid(gate)
