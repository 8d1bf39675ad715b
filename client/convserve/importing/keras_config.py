"""The configuration of a Keras model, read as what it is: JSON. Nothing in it is looked up, imported or called.

It is walked for entries that are Keras' own Conv2D; each goes through Conv2D's allow-lists. Whatever else there is,
custom classes and Lambda layers with code in them included, is listed by its name and otherwise not touched.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidConfigurationError, short_repr
from convserve.importing.imported import Skipped
from convserve.importing.untrusted import refusal
from convserve.layers.conv2d import INITIALIZERS, Conv2D

_MODELS = frozenset({"Functional", "Sequential", "Model"})
_WRAPPERS = frozenset({"TimeDistributed", "Bidirectional", "Wrapper", "SpectralNormalization"})
_PACKAGES = frozenset({"keras", "tf_keras"})
_DEEPEST = 64
_REMOTE = ("RemoteConv2D", "convserve>RemoteConv2D")  # Keras writes the second into .h5 files


@dataclass(frozen=True)
class Step:
    """Where a layer stands among those of its class in one model, of which Keras makes a path in an archive."""

    snake_case: str  # its class as Keras writes it in paths
    number: int  # how many of its class are before it
    rank: (
        int | None
    )  # how many of those are saved here; None if it is saved elsewhere, being shared and met there first
    saved: Counter[str]  # by class, how many in this model are saved here


@dataclass(frozen=True)
class Conv2DEntry:
    """A Conv2D in a model's configuration."""

    names: tuple[str, ...]  # of the models around it, the outermost first, and its own
    steps: tuple[Step, ...]  # likewise
    config: Mapping[str, Any]
    identities: tuple[str, ...]  # entries with one in common are the same layer: it is shared, or a model around it

    @property
    def name(self) -> str:
        """Its name after those of the models around it, but for the outermost."""
        return "/".join(self.names[1:])


def parse(text: str | bytes) -> Mapping[str, Any]:
    """Returns the JSON object in a text; raises ValueError if there is none."""
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("its configuration is not a JSON object")
    return config


def entries(model: Mapping[str, Any], name: str) -> list[Conv2DEntry | Skipped]:
    """Returns what a model is made of, nested models included, in the order in which Keras saves them."""
    if not isinstance(model.get("class_name"), str) or "config" not in model:
        raise refusal("the configuration of a Keras model", f"an object with the keys {short_repr(list(model))}")
    layers = _layers(model)
    if layers is None:
        return [Skipped("", model["class_name"], f"{_custom(model) or 'not a Sequential or Functional'} model")]
    return list(_walk(layers, (name,), (), (), set()))


def configuration(entry: Conv2DEntry) -> Conv2D:
    """Returns the configuration of an entry; raises InvalidConfigurationError for what has no counterpart."""
    config = dict(entry.config)
    for field in ("filters", "kernel_size"):
        if field not in config:
            raise InvalidConfigurationError.for_field(field, field, "a layer without it")
    policy = config.get("dtype")
    if isinstance(policy, dict) and not isinstance(policy.get("config"), dict):
        raise InvalidConfigurationError.for_field("dtype", "a dtype policy", short_repr(policy))
    if "/" in str(config.get("name")):  # Keras 2 allowed it
        del config["name"]
    for field, value in config.items():
        why = _custom(value) if isinstance(value, dict) and field not in INITIALIZERS else ""
        if why:
            received = f"a {why} class: {short_repr(value.get('class_name'))}"
            raise InvalidConfigurationError.for_field(field, "one of Keras' own", received)
    activation = config.get("activation")
    if isinstance(activation, dict) and (activation.get("class_name") == "__lambda__" or list(activation) == ["value"]):
        raise InvalidConfigurationError.for_field("activation", "one of Keras' own", "a lambda, whose code is not run")
    if isinstance(activation, dict) and activation.get("class_name") == "LeakyReLU":
        # Keras 2 calls the slope alpha, and the layer's default is 0.3 where the function's is 0.2.
        given = activation.get("config")
        slope = dict(given) if isinstance(given, dict) else {}
        slope.setdefault("negative_slope", slope.pop("alpha", 0.3))
        config["activation"] = {**activation, "config": slope}
    # What drew the weights does not matter once they are there, so an author's own initializer is no obstacle.
    return Conv2D.from_keras(config, optional=INITIALIZERS)


def _walk(
    layers: list[Any], names: tuple[str, ...], steps: tuple[Step, ...], identities: tuple[str, ...], seen: set[str]
) -> Iterator[Conv2DEntry | Skipped]:
    if len(names) > _DEEPEST:
        raise refusal(f"models that are nested at most {_DEEPEST} deep", "deeper ones")
    numbers: Counter[str] = Counter()
    saved: Counter[str] = Counter()
    for position, entry in enumerate(layers):
        if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
            raise refusal("a layer with its class_name", short_repr(entry))
        kind, own = entry["class_name"], (*names, name_of(entry) or entry["class_name"])
        path = "/".join(own[1:])
        if str(entry.get("module")).startswith(("keras.src.ops.", "keras.ops.")):
            # Such as `x + 1`: Keras does not count it among a model's layers, so it takes no number.
            yield Skipped(path, kind, "not a Conv2D")
            continue
        # Keras' archives have no names in their paths but classes, numbered within each model.
        is_remote = _is_remote(entry)
        snake = _snake_case("RemoteConv2D" if is_remote else kind)
        inner, config = _layers(entry), entry.get("config")
        known_as = tuple(f"{identity}/{position}" for identity in identities)
        if entry.get("shared_object_id") is not None:
            known_as += (short_repr(entry["shared_object_id"]),)
        is_first = seen.isdisjoint(known_as)
        own_steps = (*steps, Step(snake, numbers[snake], saved[snake] if is_first else None, saved))
        numbers[snake] += 1
        saved[snake] += is_first
        seen.update(known_as)
        if inner is not None:
            yield from _walk(inner, own, own_steps, known_as, seen)
        elif kind != "Conv2D" and not is_remote:
            yield Skipped(path, kind, _why_skipped(entry))
        elif _custom(entry) and not is_remote:
            yield Skipped(path, kind, f"{_custom(entry)} class that calls itself Conv2D")
        elif not isinstance(config, dict):
            yield Skipped(path, kind, f"its configuration is no object but {short_repr(config)}")
        else:
            if is_remote:
                config = {field: value for field, value in config.items() if field not in ("server", "timeout")}
            yield Conv2DEntry(own, own_steps, config, known_as)


def _is_remote(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is `convserve.keras.RemoteConv2D`, which is a Conv2D but for where it is computed."""
    names = (entry["class_name"], entry.get("registered_name") or entry["class_name"])
    return entry.get("module") in (None, "convserve.keras") and set(names) <= set(_REMOTE)


def _layers(entry: Mapping[str, Any]) -> list[Any] | None:
    """Returns the layers of one of Keras' own models, or None for anything else."""
    if entry.get("class_name") not in _MODELS or _custom(entry):
        return None
    config = entry.get("config")
    # Until Keras 2.2.2 a Sequential's configuration was the list itself.
    layers = config.get("layers") if isinstance(config, dict) else config
    return layers if isinstance(layers, list) else None


def _why_skipped(entry: Mapping[str, Any]) -> str:
    config = entry.get("config")
    inner = config.get("layer") if isinstance(config, dict) else None
    if entry["class_name"] in _WRAPPERS and isinstance(inner, dict):
        around = short_repr(inner.get("class_name"))
        return f"a wrapper, here around {around}, computes something else than what it wraps"
    if entry["class_name"] == "Convolution2D":
        return "a layer of Keras 1: load the model in Keras 2, and save it anew"
    return f"{_custom(entry)} class" if _custom(entry) else "not a Conv2D"


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
