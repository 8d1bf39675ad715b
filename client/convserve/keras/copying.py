"""Copies of models in which some layers are made as others."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras

from convserve.keras.graph import is_model, unwrapped
from convserve.keras.layers.remote_chain import RemoteChain
from convserve.keras.layers.remote_layer import LOAD_WITH

Swapped = Callable[[Any], tuple[Any, dict[str, Any]] | None]
"""Returns the class as which a layer is made, with further arguments, or None for its own."""


class Copy:
    """One copy of a model and those in it, with the weights."""

    def __init__(
        self,
        swapped: Swapped,
        runs: Callable[[Any], list[tuple[Any, ...]]] | None = None,
        chain: Callable[[tuple[Any, ...], tuple[Any, ...]], Any] | None = None,
    ) -> None:
        """Takes as what a layer is made, which layers of a model become one, and what makes it of them and copies."""
        self._swapped, self._runs, self._chain = swapped, runs, chain
        self._made: dict[int, Any] = {}  # a layer may be in several models
        self._pairs: list[tuple[Any, Any]] = []

    def model(self, model: Any) -> Any:
        """Returns the copy of a Sequential or Functional model."""
        made = self._graph(model)
        for layer, copy in self._pairs:
            _copy_state(layer, copy)
        _keep_order(model, made, self._pairs)
        return made

    def _graph(self, model: Any) -> Any:
        if id(model) in self._made:
            return self._made[id(model)]
        with warnings.catch_warnings():
            # A model that was compiled on a GPU asks for XLA, which Keras then leaves out.
            warnings.filterwarnings("ignore", "Model doesn't support `jit_compile=True`", UserWarning)
            # Functions are handed on as they are; what get_config made of them is not used.
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`", UserWarning)
            for run in self._runs(model) if self._runs else ():
                self._join(run)
            made = self._sequential(model) if isinstance(model, keras.Sequential) else self._functional(model)
            _compile_alike(model, made)
        self._made[id(model)] = made
        return made

    def _join(self, run: tuple[Any, ...]) -> None:
        """Makes the chain of a run: it has the first layer's place in the graph, and the others pass its output on."""
        assert self._chain is not None  # noqa: S101 (it comes with runs)
        copies = tuple(self._remade(layer) for layer in run)
        self._pairs += zip(run, copies, strict=True)
        self._made |= dict.fromkeys(map(id, run), ()) | {id(run[0]): self._chain(run, copies)}

    def _sequential(self, model: Any) -> Any:
        layers: list[Any] = []
        if isinstance(first := model._layers[0] if model._layers else None, keras.layers.InputLayer):
            given = {"batch_shape": first.batch_shape, "dtype": first.dtype, "name": first.name}
            layers.append(keras.Input(**given, optional=first.optional))
        for layer in model.layers:
            copied = self._copied(layer)
            layers += copied if isinstance(copied, tuple) else [copied]
        return keras.Sequential(layers, name=model.name, trainable=model.trainable)

    def _functional(self, model: Any) -> Any:
        """Returns what `keras.models.clone_model` returns, which would compile it from what is left of functions."""
        inputs = keras.tree.map_structure(_input_alike, model.input)
        outputs = model._run_through_graph(inputs, operation_fn=self._copied, call_fn=_called)
        own = inspect.getfullargspec(type(model).__init__)
        is_alike = own.args[1:4] == ["inputs", "outputs", "name"] or (own.varargs and own.varkw)
        made = (type(model) if is_alike else keras.Model)(inputs, outputs, name=model.name)
        for tensor, copied in zip(model.inputs, made.inputs, strict=True):
            layer, copy = (each._keras_history.operation for each in (tensor, copied))
            copy.name = layer.name  # that of its tensor is another where it was not chosen
        return made

    def _copied(self, layer: Any) -> Any:
        """Returns the copy of a layer or function; or several layers to be called one after the other, or none."""
        if is_model(layer):
            return self._graph(layer)
        if id(layer) not in self._made:
            self._made[id(layer)] = self._new(layer)
        return self._made[id(layer)]

    def _new(self, layer: Any) -> Any:
        if isinstance(layer, RemoteChain):
            copies = tuple(self._remade(each) for each in layer.layers)
            self._pairs += zip(layer.layers, copies, strict=True)
            return copies
        made = self._remade(layer, self._swapped(layer))
        if isinstance(layer, keras.Layer):  # a function of keras.ops is no layer, and has no state
            self._pairs.append((layer, made))
        return made

    def _remade(self, layer: Any, swapped: tuple[Any, dict[str, Any]] | None = None) -> Any:
        """Returns a layer made anew, without its weights, with what it wraps swapped."""
        config = layer.get_config()
        # One's own, which makes objects.
        reads_configs = type(layer).from_config.__module__.partition(".")[0] not in ("keras", "convserve")
        for name, value in config.items():
            given = getattr(layer, name, None)
            # Functions and objects are handed on: from what get_config makes of them Keras may not find them again. A
            # layer may have weights: it is made anew.
            if isinstance(value, dict) and callable(given) and not (reads_configs or isinstance(given, keras.Layer)):
                config[name] = given
        if swapped is not None:
            kind, further = swapped
            config = {name: value for name, value in config.items() if name not in ("server", "timeout", LOAD_WITH)}
            return kind.from_config(config | further)
        if isinstance(layer, keras.layers.Lambda):
            config |= {"output_shape": layer._output_shape, "arguments": layer.arguments}
            return type(layer)(**config)  # its from_config takes no functions, and it keeps its output_shape to itself
        if isinstance(layer, keras.layers.Wrapper):
            made = self._within(layer.layer)
            if type(layer).from_config.__func__ is keras.layers.Wrapper.from_config.__func__:
                return keras.Layer.from_config.__func__(type(layer), config | {"layer": made})
            config["layer"] = keras.saving.serialize_keras_object(made)
        return layer.__class__.from_config(config)

    def _within(self, layer: Any) -> Any:
        """Returns the copy of what a wrapper wraps."""
        if is_model(layer):
            return self._graph(layer)
        if isinstance(layer, RemoteChain):
            copies = self._new(layer)
            return keras.Sequential(copies, name=layer.name)
        return self._remade(layer, self._swapped(layer))


def _input_alike(tensor: Any) -> Any:
    is_optional = getattr(tensor._keras_history.operation, "optional", False)
    given = {"batch_shape": tensor.shape, "dtype": tensor.dtype, "sparse": tensor.sparse, "name": tensor.name}
    return keras.Input(**given, optional=is_optional)


def _called(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what a copy returns; of several layers the last."""
    if not isinstance(layer, tuple):
        return layer(*args, **kwargs)
    (x,) = args
    for each in layer:
        x = each(x)
    return x


def _compile_alike(model: Any, made: Any) -> None:
    """Compiles a copy with what its model was compiled with. The optimizer's state is not copied."""
    if not model.compiled:
        return
    if type(made).compile is not keras.Model.compile or not hasattr(model, "_compile_config"):
        made.compile_from_config(model.get_compile_config())  # a class of one's own says there what it needs
        return
    made.compile(
        **{name: keras.tree.map_structure(_own, value) for name, value in model._compile_config.config.items()}
    )
    if made.built and made.optimizer is not None:
        made.optimizer.build(made.trainable_variables)


def _own(value: Any) -> Any:
    """Returns an object that is not to be shared anew, and any other as it is."""
    if isinstance(value, keras.optimizers.Optimizer):
        config = value.get_config()
        if isinstance(value._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            config["learning_rate"] = value._learning_rate
        return type(value).from_config(config)
    if isinstance(value, keras.metrics.Metric):
        try:
            return type(value).from_config(value.get_config())
        except (TypeError, ValueError):  # of a function that Keras cannot find by its name
            return value
    return value


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
    # ... and each by itself, for a file has those of LoRA added up. Those of a model within have come already, and may
    # have another order.
    if not is_model(unwrapped(layer)):
        made.set_weights(layer.get_weights())


def _keep_order(model: Any, made: Any, pairs: list[tuple[Any, Any]]) -> None:
    """Has `get_weights` and `set_weights` of a copy go by the order of the model's weights, where its own is another.

    A chain brings its layers' weights together, between which a model with branches has others.
    """
    own = [pair for pair in pairs if not is_model(unwrapped(pair[0]))]
    twins = {id(a): b for layer, copy in own for a, b in zip(layer.weights, copy.weights, strict=True)}
    ordered = [twins[id(weight)] for weight in model.weights if id(weight) in twins]
    places = {id(weight): place for place, weight in enumerate(ordered)}
    order = [places.get(id(weight), -1) for weight in made.weights]
    # What a class of the user's own has beside its graph it makes anew, and there are no twins of that.
    if order == sorted(order) or -1 in order:
        return

    def set_weights(weights: Any) -> None:
        given = list(weights)
        # Of another number Keras says what is wrong.
        type(made).set_weights(made, [given[place] for place in order] if len(given) == len(order) else given)

    made.get_weights = lambda: [keras.ops.convert_to_numpy(weight) for weight in ordered]
    made.set_weights = set_weights
