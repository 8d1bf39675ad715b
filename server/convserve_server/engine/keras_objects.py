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

Function = Callable[..., Any]


def keras_object(value: Initializer | Regularizer | Constraint) -> Function:
    """Returns Keras' initializer, regularizer or constraint of the same name and parameters."""
    kinds = {Initializer: keras.initializers, Regularizer: keras.regularizers, Constraint: keras.constraints}
    module = next(module for kind, module in kinds.items() if isinstance(value, kind))
    return getattr(module, type(value).__name__)(**value.parameters)  # type: ignore[no-any-return]


def keras_activation(activation: Activation) -> Function:
    """Returns Keras' activation function with its parameters bound."""
    if isinstance(activation, GLU):
        # keras.activations.glu asks for the axis' size while it is traced, where height and width are not known.
        def glu(x: Any) -> Any:
            gated, gate = tf.split(x, 2, axis=activation.axis)
            return gated * tf.sigmoid(gate)

        return glu
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
