"""Stored layers and chains of them as models: which there are, and in which versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from convserve.errors import InvalidRequestError, LayerNotFoundError, short_repr
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
    """A version of a model."""

    name: str
    version: str  # the number, as the wire has it
    digests: tuple[bytes, ...] = ()  # of the layers, in order, once it is found; none of the stateless model
    reason: str = ""  # why it cannot be called, in a list of all


class LayerModels:
    """Finds models among the stored layers."""

    def __init__(self, store: LayerStore) -> None:
        self.store = store

    def find(self, name: str, version: str, field: str = "version") -> LayerModel:
        """Returns a version of a model: a layer's name, several with commas between them, or the stateless model's.

        The version is a decimal integer, or empty for the newest. Raises InvalidRequestError, which calls it `field`,
        if it is no number, or LayerNotFoundError if there is no such model, or its layers are not stored.
        """
        if version and not _NUMBER.fullmatch(version):
            expected = "a decimal integer, or nothing for the newest version"
            raise InvalidRequestError.for_field(field, expected, short_repr(version))
        number = int(version) if version else None
        if name == STATELESS:
            if number not in (None, int(_ONLY)):
                text = f"Expected version {_ONLY} of {STATELESS!r}, the only one. Received {version}."
                raise LayerNotFoundError(text, layer=STATELESS, by_name=True)
            return LayerModel(STATELESS, _ONLY)
        chain = self._versions(name)
        latest = _latest(chain)
        digests: tuple[bytes | None, ...] = tuple(versions.digest for versions in chain)
        if number is None:
            number = latest
        elif number != latest:
            digests = (chain[0].of(number) if len(chain) == 1 else None,)
        stored = tuple(digest for digest in digests if digest is not None and digest in self.store)
        if len(stored) < len(digests):
            raise self._no_version(name, chain, number)
        return LayerModel(name, str(number), stored)

    def layers(self, model: LayerModel) -> list[Layer]:
        """Returns a model's layers with their weights. Raises LayerNotFoundError if one is not stored any more."""
        return self._each(model, self.store.layer)

    def described(self, name: str, version: str) -> list[StoredLayer]:
        """Returns what is known of a model's layers without their weights. Raises as `find`."""
        return self._each(self.find(name, version), self.store.describe)

    def versions(self, name: str) -> list[str]:
        """Returns the versions of a model that can be called, oldest first. Raises LayerNotFoundError."""
        if name == STATELESS:
            return [_ONLY]
        return self._callable(name, self._versions(name))

    def listed(self) -> Iterator[LayerModel]:
        """Yields each version of each stored layer's name that can be called, and names whose layer is lost."""
        yield LayerModel(STATELESS, _ONLY)
        names = {}
        for name in self.store.names():
            with suppress(LayerNotFoundError):  # it was deleted just now
                names[name] = self.store.versions(name)
        names.pop(STATELESS, None)
        missing = self._missing(names.values())
        for name, versions in names.items():
            numbers = _numbers(versions, missing)
            yield from (LayerModel(name, number) for number in numbers)
            if str(versions.latest) not in numbers:
                reason = f"the layer {versions.digest.hex()} was lost, until it is put again"
                yield LayerModel(name, str(versions.latest), reason=reason)

    def _versions(self, model: str) -> list[NameVersions]:
        return [self.store.versions(name) for name in names_of(model)]

    def _each(self, model: LayerModel, find: Callable[[bytes], T]) -> list[T]:
        try:
            return [find(digest) for digest in model.digests]
        except LayerNotFoundError:
            raise self._no_version(model.name, self._versions(model.name), int(model.version)) from None

    def _callable(self, model: str, chain: list[NameVersions]) -> list[str]:
        # A bucket is not asked for the layers of all where those of this model are known.
        known = not self.store.unknown([digest for versions in chain for digest in versions.digests])
        missing = set[bytes]() if known else self._missing(chain)
        if SEPARATOR in model:
            return [str(_latest(chain))] if missing.isdisjoint(versions.digest for versions in chain) else []
        return _numbers(chain[0], missing)

    def _missing(self, names: Collection[NameVersions]) -> set[bytes]:
        """Returns which layers of names are not there. Those that names lead to now may have been put just now."""
        digests = [digest for versions in names for digest in versions.digests]
        missing = set(self.store.missing(digests))
        is_any_lost = not missing.isdisjoint(versions.digest for versions in names)
        return set(self.store.missing(digests, latest=True)) if is_any_lost else missing

    def _no_version(self, model: str, chain: list[NameVersions], number: int) -> LayerNotFoundError:
        stored = ", ".join(self._callable(model, chain)[-8:]) or "there is none now"
        text = f"Expected a version of {short_repr(model)} that is stored: {stored}. Received {number}."
        return LayerNotFoundError(text, layer=model, by_name=True)


def names_of(model: str) -> list[str]:
    """Returns the names of a model's stored layers, in order. Raises InvalidRequestError for too long a chain."""
    if model == STATELESS:
        return []
    names = model.split(SEPARATOR, MAX_LAYERS)
    if len(names) > MAX_LAYERS:
        raise InvalidRequestError.for_field("model_name", f"a chain of at most {MAX_LAYERS} layers", "a longer one")
    return names


def _numbers(versions: NameVersions, missing: Collection[bytes]) -> list[str]:
    """Returns the versions of a name whose layers are there, oldest first."""
    return [str(number) for number, digest in enumerate(versions.digests, versions.first) if digest not in missing]


def _latest(chain: list[NameVersions]) -> int:
    """Returns a name's newest version, or a chain's, which grows whenever one of its names moves."""
    return 1 + sum(versions.latest - 1 for versions in chain)


def stateless_layer(parameters: Mapping[str, messages.InferParameter], kernel: Array, bias: Array | None) -> Layer:
    """Returns the layer that a request describes.

    Texts among its parameters that begin with "[" or "{" are JSON, as in strides="[2, 1]". Raises InvalidArgumentError
    for wrong or unknown parameters, or weights that don't fit.
    """
    names = [name for name in parameters if name not in _IGNORED and not name.startswith("triton_")]
    given = {name: _value(name, parameters[name]) for name in names}
    filters, kernel_size = given.pop("filters", None), given.pop("kernel_size", None)
    return Layer.from_arguments(filters, kernel_size, kernel, bias, None, _DEFAULTS | given)


def _value(name: str, parameter: messages.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequestError.for_field(f"parameters.{name}", "a value", "none")
    value = getattr(parameter, choice)
    if choice != "string_param" or not value.startswith(("[", "{")):
        return value
    try:
        if len(value) > _MAX_JSON:
            raise ValueError
        return json.loads(value)
    except (ValueError, RecursionError):
        expected = f"at most {_MAX_JSON} characters of JSON, as it begins with {value[0]}"
        raise InvalidRequestError.for_field(f"parameters.{name}", expected, short_repr(value)) from None
