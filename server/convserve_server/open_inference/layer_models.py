"""Stored layers and chains of them as models: which there are, and in which versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from convserve.errors import FieldViolation, InvalidRequestError, LayerNotFoundError, short_repr
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array
from convserve_server.layer_store.names import NameVersions
from convserve_server.layer_store.store import LayerStore
from convserve_server.layer_store.stored_layer import StoredLayer
from convserve_server.open_inference.v2 import inference_service_pb2 as messages

STATELESS = "conv2d"
"""The model whose kernel comes with the request. A layer stored under this name is none."""
SEPARATOR = ","
"""Between the names of a chain; no layer's name has one."""
MAX_LAYERS = 1000
"""In a chain, whatever the server's --max-layers-per-call."""
_ONLY = "1"  # the stateless model's version

OUTPUT_DTYPE = "output_dtype"
"""The parameter that asks for the output's datatype."""
# What Triton's clients send beside a model's own parameters; none of it is about a convolution.
_IGNORED = {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", OUTPUT_DTYPE}
# Not what this server's user has in keras.json.
_DEFAULTS = {"data_format": "channels_last", "dtype": "float32"}
_MAX_JSON = 10_000  # far above what a configuration needs: what is read takes many times the memory of its text
_NUMBER = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


class LayerModel(NamedTuple):
    """A version of a model.

    Attributes:
        name: The model's name.
        version: The version's number, as the wire has it.
        digests: The layers, in order.
    """

    name: str
    version: str
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class ListedModel:
    """A version of a model in the repository's index.

    Attributes:
        name: The model's name.
        version: The version's number.
        reason: Why it cannot be called; empty if it can.
    """

    name: str
    version: str
    reason: str = ""


class LayerModels:
    """Finds models among the stored layers."""

    def __init__(self, store: LayerStore) -> None:
        """Looks into a store."""
        self._store = store

    def find(self, name: str, version: str, field: str = "version") -> LayerModel:
        """Returns a version of a model of stored layers.

        Args:
            name: A layer's name, or several with commas between them.
            version: A decimal integer; empty for the newest.
            field: What to call it in an error.

        Raises:
            InvalidRequestError: For a version that is no number.
            LayerNotFoundError: If there is no such model, or its layers are not stored.
        """
        number = version_number(version, field)
        known = [self._store.versions(each) for each in names_of(name)]
        latest = _latest(known)
        digests = tuple(each.digest for each in known)
        if number is not None and number != latest:
            older = known[0].of(number) if len(known) == 1 else None
            if older is None:
                raise self._no_version(name, known, number)
            digests = (older,)
        if not all(each in self._store for each in digests):
            raise self._no_version(name, known, latest if number is None else number)
        return LayerModel(name, str(latest if number is None else number), digests)

    def layers(self, model: LayerModel) -> list[Layer]:
        """Returns a model's layers with their weights.

        Raises:
            LayerNotFoundError: If one is not stored any more.
        """
        return self._found(model, self._store.layer)

    def described(self, model: LayerModel) -> list[StoredLayer]:
        """Returns what is known of a model's layers without their weights.

        Raises:
            LayerNotFoundError: If one is not stored any more.
        """
        return self._found(model, self._store.describe)

    def versions(self, name: str) -> list[str]:
        """Returns the versions of a model that can be called, oldest first.

        Raises:
            LayerNotFoundError: If there is no such model.
        """
        if name == STATELESS:
            return [_ONLY]
        return self._callable(name, [self._store.versions(each) for each in names_of(name)])

    def listed(self) -> Iterator[ListedModel]:
        """Yields each version of each stored layer's name that can be called, and names whose layer is lost."""
        yield ListedModel(STATELESS, _ONLY)
        for name in self._store.names():
            if name == STATELESS:
                continue
            try:
                known = self._store.versions(name)
            except LayerNotFoundError:  # it was deleted just now
                continue
            found = self._callable(name, [known])
            yield from (ListedModel(name, version) for version in found)
            if str(known.latest) not in found:
                reason = f"the layer {known.digest.hex()} was lost, until it is put again"
                yield ListedModel(name, str(known.latest), reason)

    def _found(self, model: LayerModel, find: Callable[[bytes], T]) -> list[T]:
        try:
            return [find(each) for each in model.digests]
        except LayerNotFoundError:
            known = [self._store.versions(each) for each in names_of(model.name)]
            raise self._no_version(model.name, known, int(model.version)) from None

    def _callable(self, name: str, known: list[NameVersions]) -> list[str]:
        if SEPARATOR in name:
            whole = all(each.digest in self._store for each in known)
            return [str(_latest(known))] if whole else []
        return [str(number) for number, digest in known[0].numbered() if digest in self._store]

    def _no_version(self, name: str, known: list[NameVersions], number: int) -> LayerNotFoundError:
        found = ", ".join(self._callable(name, known)[-8:]) or "there is none now"
        text = f"Expected a version of {short_repr(name)} that is stored: {found}. Received {number}."
        return LayerNotFoundError(text, layer=name, by_name=True)


def names_of(model: str) -> list[str]:
    """Returns the names of a model's layers, in order.

    Raises:
        InvalidRequestError: If there are more than any call has, so that nobody keeps the server busy looking them up.
    """
    names = model.split(SEPARATOR, MAX_LAYERS)
    if len(names) > MAX_LAYERS:
        text = f"Expected a chain of at most {MAX_LAYERS} layers. Received a longer one."
        raise InvalidRequestError(FieldViolation("model_name", text))
    return names


def stored_names(model: str) -> list[str]:
    """Returns the names of those of a model's layers that are stored: none of the stateless model's."""
    return [] if model == STATELESS else names_of(model)


def version_number(version: str, field: str) -> int | None:
    """Returns a version's number, or None for the newest.

    Raises:
        InvalidRequestError: If it is none.
    """
    if not version:
        return None
    if not _NUMBER.fullmatch(version):
        text = f"Expected a decimal integer, or nothing for the newest version. Received {short_repr(version)}."
        raise InvalidRequestError(FieldViolation(field, text))
    return int(version)


def check_stateless_version(version: str, field: str = "version") -> str:
    """Returns the stateless model's version.

    Raises:
        InvalidRequestError: For a version that is no number.
        LayerNotFoundError: For another number.
    """
    if version_number(version, field) not in (None, int(_ONLY)):
        text = f"Expected version {_ONLY} of {STATELESS!r}, the only one. Received {version}."
        raise LayerNotFoundError(text, layer=STATELESS, by_name=True)
    return _ONLY


def _latest(known: list[NameVersions]) -> int:
    """Returns a name's newest version, or a chain's, which grows whenever one of its names moves."""
    return 1 + sum(each.latest - 1 for each in known)


def stateless_layer(parameters: Mapping[str, messages.InferParameter], kernel: Array, bias: Array | None) -> Layer:
    """Returns the layer that a request describes.

    Args:
        parameters: The request's. Texts that begin with "[" or "{" are JSON, as in strides="[2, 1]".
        kernel: Array of shape (kernel height, kernel width, input channels / groups, filters).
        bias: Array of shape (filters,), or None.

    Raises:
        InvalidArgumentError: For wrong or unknown parameters, or weights that don't fit.
    """
    given = {
        name: _value(name, value)
        for name, value in parameters.items()
        if name not in _IGNORED and not name.startswith("triton_")
    }
    filters, kernel_size = given.pop("filters", None), given.pop("kernel_size", None)
    return Layer.from_arguments(filters, kernel_size, kernel, bias, None, _DEFAULTS | given)  # type: ignore[arg-type]


def _value(name: str, parameter: messages.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidRequestError(FieldViolation(f"parameters.{name}", "Expected a value. Received none."))
    value = getattr(parameter, kind)
    if kind != "string_param" or not value.startswith(("[", "{")):
        return value
    try:
        if len(value) > _MAX_JSON:
            raise ValueError
        return json.loads(value)
    except (ValueError, RecursionError):
        most = f"at most {_MAX_JSON} characters of JSON"
        text = f"Expected {most}, as it begins with {value[0]}. Received {short_repr(value)}."
        raise InvalidRequestError(FieldViolation(f"parameters.{name}", text)) from None
