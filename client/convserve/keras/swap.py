"""Whole models: every Conv2D in them made a RemoteConv2D, and back."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import keras

from convserve._rpc.channel import Target, given_target
from convserve._rpc.credentials import TLS
from convserve.errors import InvalidRequestError, short_repr
from convserve.keras.remote_calls import grant
from convserve.keras.remote_conv2d import RemoteConv2D


def to_remote(
    model: Any,
    server: Target | None = None,
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
        server: The target of a `convserve.Client`; None for that of the environment, as there.
        timeout: Seconds that one layer's call may take; None for the client's default.
        token: As for RemoteConv2D.
        tls: As for RemoteConv2D.

    Raises:
        InvalidRequestError: If the model is of another kind, or as for RemoteConv2D.
    """
    server, _ = given_target(server)
    grant(server if isinstance(server, str) else tuple(server), token, tls)
    where = {"server": server, "timeout": timeout}
    return _swapped(model, dict.fromkeys((keras.layers.Conv2D, RemoteConv2D), (RemoteConv2D, where)))


def to_local(model: Any) -> Any:
    """Returns a copy of a model in which every RemoteConv2D is a `keras.layers.Conv2D` with the same weights and name.

    Raises InvalidRequestError for another model than a Sequential or Functional one.
    """
    return _swapped(model, {RemoteConv2D: (keras.layers.Conv2D, {})})


def _swapped(model: Any, kinds: dict[Any, tuple[Any, dict[str, Any]]]) -> Any:
    """Returns a copy of a model with the layers of some kinds made as others, with further arguments."""
    if not isinstance(model, keras.Sequential | keras.Function):
        expected = (
            "a Sequential or Functional model, whose layers are known; in one of your own, make RemoteConv2D itself"
        )
        raise InvalidRequestError.for_field("model", expected, short_repr(model))
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
    reads_configs = type(layer).from_config.__module__.partition(".")[0] != "keras"  # one's own, which makes objects
    for name, value in config.items():
        given = getattr(layer, name, None)
        # Functions and objects are handed on: from what get_config makes of them Keras may not find them again. A layer
        # may have weights: it is made anew.
        if isinstance(value, dict) and callable(given) and not (reads_configs or isinstance(given, keras.Layer)):
            config[name] = given
    if type(layer) in kinds:
        kind, further = kinds[type(layer)]
        config = {name: value for name, value in config.items() if name not in ("server", "timeout")}
        return kind.from_config(config | further)
    if isinstance(layer, keras.layers.Lambda):
        config |= {"output_shape": layer._output_shape, "arguments": layer.arguments}
        return type(layer)(**config)  # its from_config takes no functions, and it keeps its output_shape to itself
    if isinstance(layer, keras.layers.Wrapper):
        inner = layer.layer
        is_model = isinstance(inner, keras.Sequential | keras.Function)
        made = _swapped(inner, kinds) if is_model else _made(inner, kinds)
        if type(layer).from_config.__func__ is keras.layers.Wrapper.from_config.__func__:
            return keras.Layer.from_config.__func__(type(layer), config | {"layer": made})
        config["layer"] = keras.saving.serialize_keras_object(made)
    return layer.__class__.from_config(config)


def _copy_state(layer: Any, made: Any) -> None:
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
