"""RemoteConv2D: `keras.layers.Conv2D` in a Keras model, computed by a server."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from convserve._rpc.channel import Target, given_target
from convserve._rpc.credentials import TLS
from convserve._rpc.retries import checked_timeout
from convserve.activations import Activation
from convserve.errors import InvalidRequestError, MissingDependencyError
from convserve.keras.remote_calls import Remote, grant, in_layer
from convserve.layers.conv2d import Conv2D
from convserve.tensors.aligned import ALIGNMENT, address_of
from convserve.tensors.codec import Array, check_unmasked

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise MissingDependencyError(
        f"convserve.keras needs Keras on TensorFlow ({error}): pip install 'convserve[server]' brings both, and "
        "KERAS_BACKEND=tensorflow chooses it."
    ) from error

_MIXED = {("float16", "float32"): "mixed_float16", ("bfloat16", "float32"): "mixed_bfloat16"}
# These two leave their input on their output, where Keras' losses look for it.
_WITH_LOGITS = {"sigmoid", "softmax"}
_config = functools.lru_cache(1000)(Conv2D)  # the same for each call of a layer
_HOW_TO_TRAIN = (
    "train the model that convserve.keras.to_local returns, or set trainable=False on the layers that stay as they are"
)


@keras.saving.register_keras_serializable(package="convserve")
class RemoteConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` whose forward pass a server computes.

    It is a Conv2D, so building, saving, loading, weights, regularizers' losses and the refusal of wrong arguments are
    Keras' own. The weights live in its variables. The server gets them with the first call, and again after they
    changed; in between, calls name them by their digest. An activation that is no plain function of
    `keras.activations` is applied here, to what the server returns.

    It does not train: `training=True` is refused unless the layer is frozen (`trainable=False`), and so is a gradient
    through it. Through a frozen layer the gradient for its input is computed in this process, as Keras computes it, so
    what is before it can train, and within a `tf.GradientTape` a frozen model can `predict`.

    Weights files (`save_weights`) go by the names of classes: load one before `to_remote`, write one after `to_local`.
    `Model.export` writes a graph, which holds no connection: export what `to_local` returns.

    In a graph (`predict`, `tf.function`, `tf.data`) TensorFlow turns what a call raises into an error of its own, with
    the name of the class and the text in it; outside of one it is one of `convserve.errors`.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), RemoteConv2D(64, 3, server="localhost:50051")])
        >>> y = model.predict(x)
    """

    __module__ = "convserve.keras"  # Keras writes it into saved models

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
            *args: The arguments of `keras.layers.Conv2D`.
            server: The target of a `convserve.Client`, which all layers of this server share; None for that of the
                environment, as there.
            timeout: Seconds that a call may take; None for the client's default.
            token: As of `convserve.Client`. It and `tls` hold for all layers of this server in this process, from now
                on. They are neither in the layer's configuration nor in a file of the model.
            tls: As of `convserve.Client`.
            **kwargs: The arguments of `keras.layers.Conv2D`.

        Raises:
            InvalidRequestError: For a server or timeout that makes no sense, or if Keras does not run on TensorFlow.
            ValueError: For wrong arguments, by Keras.
        """
        if keras.backend.backend() != "tensorflow":
            received = f"a Keras on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow before Keras is imported"
            raise InvalidRequestError.for_field("backend", "Keras on TensorFlow", received)
        server, _ = given_target(server)
        target = server if isinstance(server, str) else tuple(server)
        if timeout is not None:
            checked_timeout(timeout)
        grant(target, token, tls)
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
        """Returns what `from_config` takes: the arguments of Conv2D, and where the server is."""
        server = self.server if isinstance(self.server, str) else list(self.server)
        return {**super().get_config(), "server": server, "timeout": self.timeout}

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a variable that is read in its own dtype: the server casts, and the digest is that of the weights."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer as Keras does; a masked array, whose mask Keras would drop, is refused."""
        check_unmasked(inputs, "input")
        return super().__call__(inputs, *args, **kwargs)

    def set_weights(self, weights: Any) -> None:
        """Sets the weights as Keras does; masked arrays are refused."""
        check_unmasked(weights, "weights")
        super().set_weights(weights)

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Returns `activation(conv2d(inputs, kernel) + bias)`.

        Args:
            inputs: As `keras.layers.Conv2D` takes them.
            training: Not True, unless the layer is frozen.

        Raises:
            ConvserveError: Outside of a graph; one of the tree in `convserve.errors`.
        """
        with in_layer(repr(self.name)):
            if self.trainable and not isinstance(training, tf.Tensor) and training:
                expected = "inference, for the server returns no gradients"
                raise InvalidRequestError.for_field("training", expected, f"training=True: {_HOW_TO_TRAIN}")
            served = self._served_activation()
            config = _config(
                self.filters,
                self.kernel_size,
                self.strides,
                self.padding,
                self.data_format,
                self.dilation_rate,
                self.groups,
                served,
                self.use_bias,
                dtype=_MIXED.get((self.compute_dtype, self.variable_dtype), self.compute_dtype),
            )
            weights = [self.kernel, self.bias] if self.use_bias else [self.kernel]
            weights = [tf.cast(tf.convert_to_tensor(weight), config.variable_dtype) for weight in weights]
            if not self.trainable:
                weights = [tf.stop_gradient(weight) for weight in weights]
            # Bound to the connection rather than to the layer, which a graph would keep alive.
            convolve = functools.partial(self._remote.convolve, self.name, config)
            outputs = _applied(weakref.ref(self), convolve, config, tf.convert_to_tensor(inputs), *weights)
        outputs.set_shape(self.compute_output_shape(tuple(inputs.shape)))  # which a graph cannot know
        return outputs if served or self.activation is None else self.activation(outputs)

    def _served_activation(self) -> str | None:
        """Returns the activation's name if the server is to apply it, or None."""
        name = getattr(self.activation, "__name__", "")
        if getattr(Activation.members.get(name), "changes_shape", True) or name in _WITH_LOGITS:
            return None  # of what changes the shape, TensorFlow infers the shape by itself
        # A function of the same name from elsewhere may have other defaults, as keras.ops.gelu has.
        return name if self.activation is keras.activations.get(name) else None


def _applied(
    layer: Callable[[], RemoteConv2D | None], function: Callable[..., Array], config: Conv2D, x: Any, *weights: Any
) -> Any:
    """Returns a function of arrays, applied to tensors now or in the graph.

    Its gradient for `x` is computed here, and refused if the layer, where there is one, is not frozen by then.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def applied(x: Any, *weights: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            of = layer()
            if of is not None and of.trainable:
                expected = "no gradient through a layer that a server computes"
                raise InvalidRequestError.for_field("gradient", expected, f"one to compute: {_HOW_TO_TRAIN}")
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = _computed_here(config, x, *weights)
            return tape.gradient(output, x, upstream), *(None for _ in weights)

        if tf.executing_eagerly():
            return _tensor_of(function(*map(np.asarray, (x, *weights)))), gradient
        # A convolution is pure. That said, TensorFlow computes branches of a model side by side.
        return tf.numpy_function(function, (x, *weights), config.compute_dtype, stateful=False), gradient

    return applied(x, *weights)


def _tensor_of(output: Array) -> Any:
    """Returns an array as a tensor: where TensorFlow can compute with it, on its memory, as nobody else has it."""
    if output.dtype.name == "bfloat16" or not output.size or address_of(output) % ALIGNMENT:
        return tf.convert_to_tensor(output)
    return tf.experimental.dlpack.from_dlpack(output.__dlpack__())


def _computed_here(config: Conv2D, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Returns what the server returns, computed by Keras."""
    x, kernel = (tf.cast(each, config.compute_dtype) for each in (x, kernel))
    is_first = config.data_format == "channels_first"  # of which TensorFlow has no convolution for CPUs
    x = keras.ops.conv(
        tf.transpose(x, (0, 2, 3, 1)) if is_first else x,
        kernel,
        config.strides,
        config.padding,
        dilation_rate=config.dilation_rate,
        data_format="channels_last",
    )
    x = x if bias is None else x + tf.cast(bias, config.compute_dtype)
    return keras.activations.get(config.activation.keras_name)(tf.transpose(x, (0, 3, 1, 2)) if is_first else x)
