"""RemoteConv2D: `keras.layers.Conv2D` in a Keras model, computed by a server. It needs Keras on TensorFlow.

>>> from convserve.keras import RemoteConv2D, to_local, to_remote
>>> model = to_remote(keras.applications.MobileNetV2(), server="localhost:50051")
>>> y = model.predict(images)
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convserve._channel import DEFAULT_TARGET, channel_target
from convserve._rpc import DEFAULT_TIMEOUT_S, checked_timeout
from convserve.access import TLS
from convserve.activations import Activation
from convserve.conv2d import Conv2D
from convserve.errors import FieldViolation, InvalidRequestError, MissingDependencyError, shown
from convserve.keras_remote import Remote, grant, in_layer
from convserve.tensor import Array

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise MissingDependencyError(
        f"convserve.keras needs Keras on TensorFlow ({error}): pip install 'convserve[server]' brings both, and "
        "KERAS_BACKEND=tensorflow chooses it."
    ) from error

__all__ = ["RemoteConv2D", "to_local", "to_remote"]

_MIXED = {("float16", "float32"): "mixed_float16", ("bfloat16", "float32"): "mixed_bfloat16"}
# These two leave their input on their output, where Keras' losses look for it.
_WITH_LOGITS = {"sigmoid", "softmax"}
_HOW_TO_TRAIN = (
    "train the model that convserve.keras.to_local returns, or set trainable=False on the layers that stay as they are"
)
# What get_config gives in a form that loses functions of the user's own.
_OBJECTS = (
    "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer", "activity_regularizer",
    "kernel_constraint", "bias_constraint",
)  # fmt: skip


@keras.saving.register_keras_serializable(package="convserve")
class RemoteConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` whose forward pass a server computes.

    It is a Conv2D, so building, saving, loading, weights, regularizers' losses and the refusal of wrong arguments are
    Keras' own. The weights live in its variables. The server gets them with the first call, and again after they
    changed; in between, calls name them by their digest. An activation that is no plain function of
    `keras.activations` is applied here, to what the server returns.

    It does not train: `training=True` is refused unless the layer is frozen (`trainable=False`), and so is a gradient
    through it. Weights files (`save_weights`) go by the names of classes: load one before `to_remote`, write one after
    `to_local`. `Model.export` writes a graph, which holds no connection: export what `to_local` returns.

    In a graph (`predict`, `tf.function`, `tf.data`) TensorFlow turns what a call raises into an error of its own, with
    the name of the class and the text in it; outside of one it is one of `convserve.errors`.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), RemoteConv2D(64, 3, server="localhost:50051")])
        >>> y = model.predict(x)
    """

    def __init__(
        self,
        *args: Any,
        server: str | Sequence[str] = DEFAULT_TARGET,
        timeout: float | None = None,
        token: str | None = None,
        tls: TLS | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes the layer. The connection is made with the first call.

        Args:
            *args: The arguments of `keras.layers.Conv2D`.
            server: The target of a `convserve.Client`, which all layers of this server share.
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
            text = f"Expected Keras on TensorFlow. Received a Keras on {keras.backend.backend()}: "
            hint = "set KERAS_BACKEND=tensorflow before Keras is imported."
            raise InvalidRequestError(FieldViolation("backend", text + hint))
        target = server if isinstance(server, str) else tuple(server)
        channel_target(target)
        checked_timeout(timeout, DEFAULT_TIMEOUT_S)
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
                text = "Expected inference, for the server returns no gradients. Received training=True: "
                raise InvalidRequestError(FieldViolation("training", f"{text}{_HOW_TO_TRAIN}."))
            served = self._served_activation()
            config = Conv2D(
                self.filters,
                self.kernel_size,
                strides=self.strides,
                padding=self.padding,
                data_format=self.data_format,
                dilation_rate=self.dilation_rate,
                groups=self.groups,
                activation=served,
                use_bias=self.use_bias,
                dtype=_MIXED.get((self.compute_dtype, self.variable_dtype), self.compute_dtype),
            )
            weights = [self.kernel, self.bias] if self.use_bias else [self.kernel]
            weights = [tf.cast(tf.convert_to_tensor(each), config.variable_dtype) for each in weights]
            if not self.trainable:
                weights = [tf.stop_gradient(each) for each in weights]
            # Bound to the connection rather than to the layer, which a graph would keep alive.
            convolve = functools.partial(self._remote.convolve, self.name, config)
            outputs = _applied(convolve, config.compute_dtype, tf.convert_to_tensor(inputs), *weights)
        outputs.set_shape(self.compute_output_shape(tuple(inputs.shape)))  # which a graph cannot know
        return outputs if served or self.activation is None else self.activation(outputs)

    def _served_activation(self) -> str | None:
        """Returns the activation's name if the server is to apply it, or None."""
        name = getattr(self.activation, "__name__", "")
        if getattr(Activation.members.get(name), "changes_shape", True) or name in _WITH_LOGITS:
            return None  # of what changes the shape, TensorFlow infers the shape by itself
        # A function of the same name from elsewhere may have other defaults, as keras.ops.gelu has.
        return name if self.activation is keras.activations.get(name) else None


def _applied(function: Callable[..., Array], dtype: str, *tensors: Any) -> Any:
    """Returns a function of arrays, applied to tensors now or in the graph. A gradient through it is refused."""

    def gradient(*_: Any) -> Any:
        text = "Expected no gradient through a layer that a server computes. Received one to compute: "
        raise InvalidRequestError(FieldViolation("gradient", f"{text}{_HOW_TO_TRAIN}."))

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def applied(*given: Any) -> Any:
        if tf.executing_eagerly():
            return tf.convert_to_tensor(function(*map(np.asarray, given))), gradient
        # A convolution is pure. That said, TensorFlow computes branches of a model side by side.
        return tf.numpy_function(function, given, dtype, stateful=False), gradient

    return applied(*tensors)


def to_remote(
    model: Any,
    server: str | Sequence[str] = DEFAULT_TARGET,
    timeout: float | None = None,
    *,
    token: str | None = None,
    tls: TLS | bool | None = None,
) -> Any:
    """Returns a copy of a model in which every Conv2D is a RemoteConv2D with the same weights and name.

    Nested models and wrappers such as TimeDistributed are gone through. Subclasses of Conv2D stay as they are, except
    RemoteConv2D, which moves to the server. The optimizer's state is not copied.

    Args:
        model: A Sequential or Functional model.
        server: The target of a `convserve.Client`.
        timeout: Seconds that one layer's call may take; None for the client's default.
        token: As for RemoteConv2D.
        tls: As for RemoteConv2D.

    Raises:
        InvalidRequestError: If the model is of another kind, or as for RemoteConv2D.
    """
    grant(server if isinstance(server, str) else tuple(server), token, tls)
    where = {"server": server, "timeout": timeout}
    return _swapped(model, dict.fromkeys((keras.layers.Conv2D, RemoteConv2D), (RemoteConv2D, where)))


def to_local(model: Any) -> Any:
    """Returns a copy of a model in which every RemoteConv2D is a `keras.layers.Conv2D` with the same weights and name.

    Args:
        model: A Sequential or Functional model.

    Raises:
        InvalidRequestError: If the model is of another kind.
    """
    return _swapped(model, {RemoteConv2D: (keras.layers.Conv2D, {})})


def _swapped(model: Any, kinds: dict[Any, tuple[Any, dict[str, Any]]]) -> Any:
    """Returns a copy of a model with the layers of some kinds made as others, with further arguments."""
    if not isinstance(model, keras.Sequential | keras.Function):
        text = "Expected a Sequential or Functional model, whose layers are known; in a model of your own class, make "
        raise InvalidRequestError(FieldViolation("model", f"{text}RemoteConv2D itself. Received {shown(model)}."))
    pairs: list[tuple[Any, Any]] = []

    def copy(layer: Any) -> Any:
        made = _made(layer, kinds)
        if isinstance(layer, keras.Layer):  # a function of keras.ops is no layer, and has no state
            pairs.append((layer, made))
        return made

    with warnings.catch_warnings():
        # A model that was compiled on a GPU asks for XLA, which Keras then leaves out.
        warnings.filterwarnings("ignore", "Model doesn't support `jit_compile=True`", UserWarning)
        # Functions are handed on as they are; what get_config made of them is not used.
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`", UserWarning)
        swapped = keras.models.clone_model(model, clone_function=copy, recursive=True)
    for layer, made in pairs:
        _copy_state(layer, made)
    _name_inputs(model, swapped)
    return swapped


def _made(layer: Any, kinds: dict[Any, tuple[Any, dict[str, Any]]]) -> Any:
    """Returns a layer made anew, without its weights, with its kind and what it wraps swapped."""
    config = layer.get_config()
    if type(layer) in kinds:
        kind, further = kinds[type(layer)]
        config = {name: value for name, value in config.items() if name not in ("server", "timeout")}
        config |= {name: getattr(layer, name) for name in _OBJECTS}
        if not isinstance(layer.activation, keras.Layer):  # one that is a layer may have weights: it is made anew
            config["activation"] = layer.activation
        return kind.from_config(config | further)
    if isinstance(layer, keras.layers.Wrapper):
        inner = layer.layer
        if isinstance(inner, keras.Sequential | keras.Function):
            config["layer"] = keras.saving.serialize_keras_object(_swapped(inner, kinds))
        elif type(inner) in kinds or isinstance(inner, keras.layers.Wrapper):
            config["layer"] = keras.saving.serialize_keras_object(_made(inner, kinds))
    return layer.__class__.from_config(config)


def _copy_state(layer: Any, made: Any) -> None:
    """Gives a layer that was made anew all that another one has learnt."""
    if layer.built and not made.built:
        made.build_from_config(layer.get_build_config() or {})
    if hasattr(layer, "save_assets"):  # vocabularies
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            made.load_assets(folder)
    # As from a file, so that layers such as Normalization see that they have new weights ...
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    made.load_own_variables(store)
    # ... and each by itself, for a file has those of LoRA added up.
    made.set_weights(layer.get_weights())


def _name_inputs(model: Any, made: Any) -> None:
    """Gives input layers the names that they had; those that were not chosen, clone_model makes anew."""
    for layer, new in zip(model.layers, made.layers, strict=True):
        if isinstance(layer, keras.layers.InputLayer):
            new.name = layer.name
        elif isinstance(layer, keras.Sequential | keras.Function):
            _name_inputs(layer, new)
