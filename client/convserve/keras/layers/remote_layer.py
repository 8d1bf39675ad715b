"""RemoteLayer: what the layers that a server computes have in common."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from convserve._rpc.channel import Target
from convserve._rpc.credentials import TLS
from convserve.errors import InvalidRequestError
from convserve.keras.layers.here import computed_here
from convserve.keras.layers.remote_calls import Remote, granted, in_layer
from convserve.keras.layers.steps import Steps
from convserve.protocol.call_arguments import checked_timeout
from convserve.tensors.aligned import ALIGNMENT, address_of
from convserve.tensors.codec import Array, check_unmasked

_HOW_TO_TRAIN = (
    "train the model that convserve.keras.to_local returns, or set trainable=False on the layers that stay as they are"
)
# Keras shows a layer's configuration in the error of a process that does not know its class.
LOAD_WITH = "load_with"
# Who traces a layer to write what it computes into a file.
_EXPORTERS = ("keras.src.export.", "tensorflow.python.saved_model.", "tensorflow.lite.")


class RemoteLayer:
    """Stands before a class of Keras' among the bases of a layer whose forward pass a server computes."""

    name: str
    trainable: bool
    compute_output_shape: Callable[..., Any]

    def __init__(
        self,
        *args: Any,
        server: Target | None = None,
        timeout: float | None = None,
        token: str | None = None,
        tls: TLS | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes the layer. The connection is made with the first call.

        Args:
            *args: The arguments of Keras' layer.
            server: The target of a `convserve.Client`, which all layers of this server share; None for that of the
                environment, as there.
            timeout: Seconds that a call may take; None for the client's default.
            token: As of `convserve.Client`. It and `tls` hold for all layers of this server in this process, from now
                on. They are neither in the layer's configuration nor in a file of the model.
            tls: As of `convserve.Client`.
            **kwargs: The arguments of Keras' layer.

        Raises:
            InvalidRequestError: For a server or timeout that makes no sense, or if Keras does not run on TensorFlow.
            ValueError: For wrong arguments, by Keras.
        """
        if keras.backend.backend() != "tensorflow":
            received = f"a Keras on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow before Keras is imported"
            raise InvalidRequestError.for_field("backend", "Keras on TensorFlow", received)
        checked_timeout(timeout)
        target = granted(server, token, tls)
        super().__init__(*args, **kwargs)
        self.supports_jit = False  # XLA computes on the device alone
        self._remote = Remote(target, timeout)

    @property
    def server(self) -> str | tuple[str, ...]:
        """The server's target. `to_remote` makes the same layer for another one."""
        return self._remote.server

    @property
    def timeout(self) -> float | None:
        """Seconds that a call may take; None for the client's default."""
        return self._remote.timeout

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` takes: the arguments of Keras' layer, and where the server is."""
        server = self.server if isinstance(self.server, str) else list(self.server)
        config = super().get_config()  # type: ignore[misc]
        return {LOAD_WITH: "import convserve.keras", **config, "server": server, "timeout": self.timeout}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Returns the layer that `get_config` describes."""
        given = {name: value for name, value in config.items() if name != LOAD_WITH}
        return super().from_config(given)  # type: ignore[misc]

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a variable that is read in its own dtype: the server casts, and the digest is that of the weights."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})  # type: ignore[misc]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer as Keras does; a masked array, whose mask Keras would drop, is refused."""
        check_unmasked(inputs, "input")
        return super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]

    def set_weights(self, weights: Any) -> None:
        """Sets the weights as Keras does; masked arrays are refused."""
        check_unmasked(weights, "weights")
        super().set_weights(weights)  # type: ignore[misc]

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Returns what Keras' layer returns.

        Args:
            inputs: As Keras' layer takes them.
            training: Not True, unless the layer is frozen.

        Raises:
            ConvserveError: Outside of a graph; one of the tree in `convserve.errors`.
        """
        shown = f"{type(self).__name__} {self.name!r}"
        with in_layer(shown):
            trains = self._trains()
            if trains and not isinstance(training, tf.Tensor) and training:
                expected = "inference, for the server returns no gradients"
                raise InvalidRequestError.for_field("training", expected, f"training=True: {_HOW_TO_TRAIN}")
            if not tf.executing_eagerly():
                _check_not_exported()
            steps, weights, activation = self._served()
            if not trains:
                weights = [tf.stop_gradient(weight) for weight in weights]
            # Bound to the connection rather than to the layer, which a graph would keep alive.
            convolve = functools.partial(self._remote.convolve, shown, steps)
            outputs = _applied(weakref.ref(self), convolve, steps, tf.convert_to_tensor(inputs), *weights)
        outputs.set_shape(self.compute_output_shape(tuple(inputs.shape)))  # which a graph cannot know
        return outputs if activation is None else activation(outputs)

    def _trains(self) -> bool:
        """Returns whether the layer is to learn, which it cannot."""
        return self.trainable

    def _served(self) -> tuple[Steps, list[Any], Callable[[Any], Any] | None]:
        """Returns what the server computes, its weights as tensors in their own dtypes, and what is applied here."""
        raise NotImplementedError


def tensors(weights: list[Any], dtype: str) -> list[Any]:
    """Returns weights as tensors of a dtype."""
    return [tf.cast(tf.convert_to_tensor(weight), dtype) for weight in weights]


def _check_not_exported() -> None:
    """Raises InvalidRequestError if a layer is being written into a file of what it computes."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_EXPORTERS):
            expected = "a model that computes by itself, for what is written holds no connection to a server"
            hint = "Export the model that convserve.keras.to_local returns; `save` keeps remote layers."
            raise InvalidRequestError.for_field("export", expected, "one with a remote layer", hint)
        frame = frame.f_back


def _applied(
    layer: Callable[[], RemoteLayer | None], function: Callable[..., Array], steps: Steps, x: Any, *weights: Any
) -> Any:
    """Returns a function of arrays, applied to tensors now or in the graph.

    Its gradient for `x` is computed here, and refused if the layer, where there is one, is not frozen by then.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def applied(x: Any, *weights: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            of = layer()
            if of is not None and of._trains():
                expected = "no gradient through a layer that a server computes"
                raise InvalidRequestError.for_field("gradient", expected, f"one to compute: {_HOW_TO_TRAIN}")
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = computed_here(steps, x, *weights)
            return tape.gradient(output, x, upstream), *(None for _ in weights)

        if tf.executing_eagerly():
            return _tensor_of(function(*map(np.asarray, (x, *weights)))), gradient
        # A convolution is pure. That said, TensorFlow computes branches of a model side by side.
        return tf.numpy_function(function, (x, *weights), steps[-1].compute_dtype, stateful=False), gradient

    return applied(x, *weights)


def _tensor_of(output: Array) -> Any:
    """Returns an array as a tensor: where TensorFlow can compute with it, on its memory, as nobody else has it."""
    if output.dtype.name == "bfloat16" or not output.size or address_of(output) % ALIGNMENT:
        return tf.convert_to_tensor(output)
    return tf.experimental.dlpack.from_dlpack(output.__dlpack__())
