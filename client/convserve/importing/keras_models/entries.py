"""The configuration of a Keras model, read as what it is: JSON. Nothing in it is looked up, imported or called.

It is walked for entries that are Keras' own convolutions; each goes through Conv2D's allow-lists. Whatever else there
is, custom classes and Lambda layers with code in them included, is listed by its name and otherwise not touched.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidConfigurationError, short_repr
from convserve.importing.untrusted import refusal
from convserve.layers.keras_layers import CONVOLUTIONS, advice, kernels
from convserve.models.operations import ACTIVATIONS, PADDINGS, PASS_THROUGH, identifier

_MODELS = frozenset({"Functional", "Sequential", "Model"})
_WRAPPERS = frozenset({"TimeDistributed", "Bidirectional", "Wrapper", "SpectralNormalization"})
_PACKAGES = frozenset({"keras", "tf_keras"})
_LONGEST_JSON = 16 * 2**20  # what takes three bytes takes 60 in memory, and a layer of 30 bytes 750
_DEEPEST = 64
_LONGEST_NAME = 1000  # with those of the models around it, which each layer in them has in its own
_MOST_IDENTITIES = 200_000  # of layers that may be shared: each has one for each model around it
_CHAIN = "Chain"  # of `convserve.keras.RemoteChain`, which holds layers that follow each other
_REMOTE_ONLY = ("server", "timeout", "load_with")
NORMALIZATIONS = frozenset({"BatchNormalization", "BatchNormalizationV1", "SyncBatchNormalization"})
SURROUNDING = NORMALIZATIONS | ACTIVATIONS | PADDINGS
"""Layers that may become part of a convolution."""


@dataclass(frozen=True)
class Step:
    """Where a layer stands among those of its class in one model, of which Keras makes a path in an archive."""

    snake_case: str  # its class as Keras writes it in paths
    number: int  # how many of its class are before it
    rank: int | None  # how many of those are saved here; None if it is saved where it was met first, being shared
    saved: Counter[str]  # by class, how many in this model are saved here


@dataclass(frozen=True)
class Entry:
    """A layer in a model's configuration."""

    kind: str  # its class; of a remote layer, that of the one which it stands for
    names: tuple[str, ...]  # of the models around it, the outermost first, and its own
    steps: tuple[Step, ...]  # likewise
    position: tuple[int, ...]  # among the layers of each of them
    config: Mapping[str, Any]
    identities: tuple[str, ...]  # entries with one in common are the same layer: it is shared, or a model around it
    reason: str = ""  # why it is none of those that can be read, or nothing

    @property
    def name(self) -> str:
        """Its name after those of the models around it, but for the outermost."""
        return "/".join(self.names[1:])

    @property
    def is_convolution(self) -> bool:
        """Whether it is one of Keras' convolutions that Conv2Ds compute."""
        return not self.reason and self.kind in CONVOLUTIONS


def parse(text: str | bytes) -> Mapping[str, Any]:
    """Returns the JSON object in a text; raises ValueError if there is none, InvalidRequestError if it is too long."""
    if len(text) > _LONGEST_JSON:
        raise refusal(f"a configuration of at most {_LONGEST_JSON} bytes of JSON", f"{len(text)}")
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("its configuration is not a JSON object")
    return config


def entries(model: Mapping[str, Any], name: str) -> list[Entry]:
    """Returns what a model is made of, nested models included, in the order in which Keras saves them."""
    if not isinstance(model.get("class_name"), str) or "config" not in model:
        raise refusal("the configuration of a Keras model", f"an object with the keys {short_repr(list(model))}")
    layers = layers_of(model)
    reason = "" if layers is not None else f"{_custom(model) or 'not a Sequential or Functional'} model"
    outermost = Entry(model["class_name"], (name,), (), (), {}, (), reason)
    return [outermost] if layers is None else list(_walk(layers, outermost, set()))


def checked(entry: Entry, *, is_keras_2: bool = False) -> dict[str, Any]:
    """Returns the configuration of a convolution, without what is custom, in today's words.

    Raises InvalidConfigurationError for what has no counterpart. That of a Conv2D is checked elsewhere.
    """
    config = dict(entry.config)
    policy = config.get("dtype")
    if isinstance(policy, dict) and not isinstance(policy.get("config"), dict):
        raise InvalidConfigurationError.for_field("dtype", "a dtype policy", short_repr(policy))
    if "/" in str(config.get("name")):  # Keras 2 allowed it
        del config["name"]
    # What drew the weights does not matter once they are there, so an author's own initializer is no obstacle.
    initializers = {f"{kernel}_initializer" for kernel in (*kernels(entry.kind), "bias")}
    for field, value in config.items():
        why = _custom(value) if isinstance(value, dict) and field not in initializers else ""
        if why:
            received = f"a {why} class: {short_repr(value.get('class_name'))}"
            raise InvalidConfigurationError.for_field(field, "one of Keras' own", received)
    activation = config.get("activation")
    if is_keras_2 and activation == "hard_sigmoid":
        # Keras 3 loads such a file without a word, and computes other numbers.
        expected, received = "an activation that Keras 3 has too", "Keras 2's hard_sigmoid, 0.2 * x + 0.5 from 0 to 1"
        raise InvalidConfigurationError.for_field("activation", expected, received)
    if isinstance(activation, dict) and (activation.get("class_name") == "__lambda__" or list(activation) == ["value"]):
        raise InvalidConfigurationError.for_field("activation", "one of Keras' own", "a lambda, whose code is not run")
    if isinstance(activation, dict) and activation.get("class_name") == "LeakyReLU":
        given = activation.get("config")
        config["activation"] = identifier("LeakyReLU", given if isinstance(given, dict) else {})
    return config


def _walk(layers: list[Any], around: Entry, seen: set[str]) -> Iterator[Entry]:
    """Yields what is in the layers of a model; `seen` has the identities of those before."""
    if len(around.names) > _DEEPEST:
        raise refusal(f"models that are nested at most {_DEEPEST} deep", "deeper ones")
    numbers: Counter[str] = Counter()
    saved: Counter[str] = Counter()
    for index, layer in enumerate(layers):
        if not isinstance(layer, dict) or not isinstance(layer.get("class_name"), str):
            raise refusal("a layer with its class_name", short_repr(layer))
        kind, config = layer["class_name"], layer.get("config")
        names, position = (*around.names, name_of(layer) or kind), (*around.position, index)
        if sum(map(len, names)) > _LONGEST_NAME:
            raise refusal(f"names of at most {_LONGEST_NAME} characters", f"{short_repr(names[-1])}, a longer one")
        if str(layer.get("module")).startswith(("keras.src.ops.", "keras.ops.")):
            # Such as `x + 1`: Keras does not count it among a model's layers, so it takes no number.
            yield Entry(kind, names, (), position, {}, (), "not a Conv2D")
            continue
        # Keras' archives have no names in their paths but classes, numbered within each model.
        remote = _remote(layer)
        snake = _snake_case(kind.removeprefix("convserve>") if remote else kind)
        identities = tuple(f"{identity}/{index}" for identity in around.identities)
        if layer.get("shared_object_id") is not None:
            identities += (short_repr(layer["shared_object_id"]),)
        is_first = seen.isdisjoint(identities)
        steps = (*around.steps, Step(snake, numbers[snake], saved[snake] if is_first else None, saved))
        numbers[snake] += 1
        saved[snake] += is_first
        seen.update(identities)
        if len(seen) > _MOST_IDENTITIES:
            raise refusal(f"at most {_MOST_IDENTITIES} layers that models may share, once for each of these", "more")
        reason = "" if remote in CONVOLUTIONS else _why_skipped(layer)
        if not isinstance(config, dict):
            reason = reason or f"its configuration is no object but {short_repr(config)}"
            config = {}
        if remote in CONVOLUTIONS:
            kind, config = remote, {field: value for field, value in config.items() if field not in _REMOTE_ONLY}
        entry, inner = Entry(kind, names, steps, position, config, identities, reason), layers_of(layer)
        if inner is None:
            yield entry
        else:
            yield from _walk(inner, entry, seen)


def _remote(entry: Mapping[str, Any]) -> str:
    """Returns the class that a layer of `convserve.keras` stands for, "Chain" for several in a row, or nothing."""
    name = entry["class_name"].removeprefix("convserve>")  # Keras writes it into .h5 files
    known_as = (None, "", name, f"convserve>{name}")
    is_ours = entry.get("registered_name") in known_as and entry.get("module") in (None, "convserve.keras")
    kind: str = name.removeprefix("Remote")
    return kind if is_ours and kind != name and kind in (*CONVOLUTIONS, _CHAIN) else ""


def layers_of(entry: Mapping[str, Any]) -> list[Any] | None:
    """Returns the layers of one of Keras' own models, or of a chain, or None for anything else."""
    if _remote(entry) != _CHAIN and (entry["class_name"] not in _MODELS or _custom(entry)):
        return None
    config = entry.get("config")
    # Until Keras 2.2.2 a Sequential's configuration was the list itself.
    layers = config.get("layers") if isinstance(config, dict) else config
    return layers if isinstance(layers, list) else None


def is_sequence(entry: Mapping[str, Any]) -> bool:
    """Whether each of the layers in a model follows the one before it in the list."""
    return entry["class_name"] == "Sequential" or _remote(entry) == _CHAIN


def _why_skipped(entry: Mapping[str, Any]) -> str:
    """Returns why a layer cannot be read, or nothing."""
    kind, config, custom = entry["class_name"], entry.get("config"), _custom(entry)
    inner = config.get("layer") if isinstance(config, dict) else None
    if kind in CONVOLUTIONS:
        return f"{custom} class that calls itself {kind}" if custom else ""
    if kind in _WRAPPERS and isinstance(inner, dict):
        around = short_repr(inner.get("class_name"))
        return f"a wrapper, here around {around}, computes something else than what it wraps"
    if kind == "Convolution2D":
        return "a layer of Keras 1: load the model in Keras 2, and save it anew"
    if custom:
        return f"{custom} class"
    if kind in SURROUNDING or kind in PASS_THROUGH:
        return ""
    return advice(kind) or "not a Conv2D"


def _custom(entry: Mapping[str, Any]) -> str:
    """Returns "custom, of MODULE" if a class is not one of Keras' own, else nothing. Old files don't say."""
    module, registered = entry.get("module"), entry.get("registered_name")
    if module is not None and str(module).partition(".")[0] not in _PACKAGES:
        return f"custom ({short_repr(module)})"
    if registered is not None and registered != entry.get("class_name"):
        return f"custom ({short_repr(registered)})"
    return ""


def name_of(entry: Mapping[str, Any]) -> str:
    """Returns the name of a model or a layer, or nothing where its configuration has none."""
    config = entry.get("config")
    for place in (config, entry):
        name = place.get("name") if isinstance(place, dict) else None
        if isinstance(name, str) and name:
            return name
    return ""


def _snake_case(name: str) -> str:
    """Returns "conv2d" for "Conv2D", as Keras writes classes in the paths of its archives."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
