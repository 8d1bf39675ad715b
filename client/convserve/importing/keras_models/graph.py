"""Who reads whom in a model, by the connections that its configuration has: JSON of Keras 2 and of Keras 3.

A reference to a layer's output is found wherever it is written among a layer's arguments. One too many leaves more as
it is than need be; where one may be missing, nothing is told of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convserve.errors import short_repr
from convserve.importing.keras_models.entries import is_sequence, layers_of, name_of

Position = tuple[int | str, ...]
"""The indices of a layer among those of the models around it; a nested model begins at "in", ends at "out"."""


class UnclearError(Exception):
    """The configuration does not tell who reads whom; the text says why."""


@dataclass(frozen=True)
class Connected:
    """A layer in a model's graph, or where a nested model begins or ends."""

    label: str  # its name after those of the models around it; no other has it
    kind: str  # its class
    reads: tuple[Position, ...]  # those whose outputs it reads, over all its calls
    trains: bool  # whether it, or a model around it, is called with training=True


def connections(model: Mapping[str, Any]) -> tuple[dict[Position, Connected], tuple[Position, ...]]:
    """Returns what is in a model, nested models included, and those whose outputs it returns; raises UnclearError."""
    _check_none_shared(model, set())
    walk = _Walk()
    returned = walk.connect(model, (), "", trains=False)
    return walk.graph, returned


def _check_none_shared(model: Mapping[str, Any], seen: set[str]) -> None:
    """Raises UnclearError for a layer of several models: Keras 2.12 gives each the connections of the first."""
    for layer in layers_of(model) or ():
        identity = layer.get("shared_object_id")
        if identity is not None and short_repr(identity) in seen:
            raise UnclearError(f"models share {name_of(layer)}, of which files do not always say what it follows")
        seen.add(short_repr(identity))
        _check_none_shared(layer, seen)


class _Walk:
    def __init__(self) -> None:
        self.graph: dict[Position, Connected] = {}
        self._labels: set[str] = set()

    def connect(self, model: Mapping[str, Any], here: Position, before: str, *, trains: bool) -> tuple[Position, ...]:
        """Enters the layers of a model, and returns those whose outputs it returns."""
        layers = layers_of(model) or []
        begin: tuple[Position, ...] = ((*here, "in"),) if here else ()
        ends = [(*here, index, *(() if layers_of(layer) is None else ("out",))) for index, layer in enumerate(layers)]
        sequence = is_sequence(model)
        places = {} if sequence else _places(layers)
        for index, layer in enumerate(layers):
            if sequence:
                reads = (ends[index - 1],) if index else begin
            else:
                reads = tuple(ends[place] for place in _references(layer.get("inbound_nodes"), places))
                if layer["class_name"] == "InputLayer":
                    reads += begin
                elif not reads:
                    raise UnclearError(f"the file does not say what {name_of(layer)} follows")
            trained = trains or _trains(layer.get("inbound_nodes"))
            name, kind = f"{before}{name_of(layer) or layer['class_name']}", layer["class_name"]
            if layers_of(layer) is not None:
                self._enter((*here, index, "in"), f"{name} (its input)", kind, reads, trained)
                reads = self.connect(layer, (*here, index), f"{name}/", trains=trained)
            self._enter(ends[index], name, kind, reads, trained)
        if sequence:
            return tuple(ends[-1:])
        config = model.get("config")
        outputs = config.get("output_layers") if isinstance(config, dict) else None
        returned = tuple(ends[place] for place in _references(outputs, places))
        if not returned:
            raise UnclearError("the file does not say what the model returns")
        return returned

    def _enter(self, position: Position, name: str, kind: str, reads: tuple[Position, ...], trains: bool) -> None:
        label = name if name not in self._labels else f"{name} at {'.'.join(map(str, position))}"
        if label in self._labels:
            raise UnclearError("layers have the same name")
        self._labels.add(label)
        self.graph[position] = Connected(label, kind, reads, trains)


def _places(layers: list[Any]) -> dict[str, int]:
    """Returns the place of each layer by the names that others refer to it by."""
    places: dict[str, int] = {}
    for index, layer in enumerate(layers):
        for name in {name_of(layer), str(layer.get("name") or name_of(layer))}:
            if places.setdefault(name, index) != index:
                raise UnclearError("layers of one model have the same name")
    return places


def _trains(value: Any) -> bool:
    """Whether a layer is called with training=True, by whatever name or none: all else that is True is a tensor's."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value is True:
            return True
        if isinstance(value, dict) and value.get("class_name") != "__keras_tensor__":
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _references(value: Any, places: Mapping[str, int]) -> Iterator[int]:
    """Yields the place of each layer that is referred to: ["name", call, output, ...], alone or in `keras_history`."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            is_reference = len(value) >= 3 and isinstance(value[0], str) and value[0] in places
            if is_reference and isinstance(value[1], int) and isinstance(value[2], int):
                yield places[value[0]]
                waiting += value[3:]  # keyword arguments, in Keras 2
            else:
                waiting += value
