"""What a client knows of a layer that a server stores, and which names one may have. Nothing here does I/O."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from convserve.display import html_tables
from convserve.display.units import bytes_text
from convserve.errors import InvalidRequestError, InvalidWeightsError, short_repr
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.digest import compute_alike
from convserve.layers.layer import Layer
from convserve.layers.weight_shapes import check_kernel_channels, check_weight_shapes, weight_bytes, weight_rows
from convserve.protocol.results import reading_answers
from convserve.tensors.codec import Shape, checked_shape
from convserve.v1 import layer_pb2

COLUMNS = ("name", "digest", "kernel", "strides", "padding", "activation", "weights")
"""Of a table of stored layers."""
DIGEST_BYTES = 32
MAX_NAME = 200
"""Characters that a layer's name may have."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(eq=False, repr=False)
class StoredLayerBase:
    """A stored layer, by its digest, with its weights where this process has them.

    Attributes:
        digest: The 32 bytes that identify it on every server.
        config: Its configuration, every seed filled in.
        kernel_shape: Its kernel's shape.
        name: The name under which it was put or found, or None.
        names: All names that led to it when it was put or found.
        local: The layer with its weights, if they came from this process or have been read; else None.
        uploads: How many times it was uploaded to servers that lacked it.
        forms: What its calls have in common, by shape and dtype of the input; `_rpc.requests` fills it.
    """

    digest: bytes
    config: Conv2D
    kernel_shape: Shape
    name: str | None = None
    names: tuple[str, ...] = ()
    local: Layer | None = None
    uploads: int = field(default=0, init=False)
    forms: dict[Hashable, Any] = field(default_factory=dict, init=False)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what the layer is; what this process has kept of its calls is left behind."""
        return vars(self) | {"uploads": 0, "forms": {}}

    def to_reference(self) -> layer_pb2.LayerReference:
        """Returns the message that names the layer."""
        return layer_pb2.LayerReference(digest=self.digest)

    def to_carried_reference(self) -> layer_pb2.LayerReference:
        """Returns the message that brings the layer to a server that does not hold it."""
        if self.local is None:
            return self.to_reference()
        reference = self.local.to_reference()
        reference.inline.store = True
        return reference

    def __repr__(self) -> str:
        """Returns name, digest and configuration."""
        name = f"{self.name!r} " if self.name else ""
        return f"<{type(self).__name__} {name}{self.digest.hex()[:12]} {self.config!r}>"

    def _repr_html_(self) -> str:
        names = self.names or ((self.name,) if self.name else ())
        rows = [
            ("name", ", ".join(names) or "none"),
            ("digest", self.digest.hex()[:12]),
            *self.config.given().items(),
            *weight_rows(self.config, self.kernel_shape),
        ]
        return html_tables.table(type(self).__name__, rows)


Stored = TypeVar("Stored", bound=StoredLayerBase)


class LayerList(list[Stored]):
    """A list of stored layers, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return html_tables.grid(COLUMNS, map(cells, self))


def cells(layer: StoredLayerBase) -> tuple[str, ...]:
    """Returns what a table of stored layers says of one under `COLUMNS`."""
    config = layer.config
    padding = config.padding
    amounts = padding if isinstance(padding, str) else ",".join(str(rows) for side in padding for rows in side)
    groups = f" in {config.groups} groups" if config.groups > 1 else ""
    dilated = f" dilated {_pair(config.dilation_rate)}" if max(config.dilation_rate) > 1 else ""
    return (
        ", ".join(layer.names) or "-",
        layer.digest.hex()[:12],
        f"{layer.kernel_shape}{groups}{dilated}",
        _pair(config.strides),
        amounts,
        config.activation.keras_name,
        bytes_text(weight_bytes(layer.config, layer.kernel_shape)),
    )


def _pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]},{pair[1]}"


def check_name(name: str, field: str = "name") -> None:
    """Checks the name that a layer is to have; client and server both call it.

    Raises InvalidRequestError for the field, if it has other characters than allowed.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name) or ".." in name:
        expected = f"1 to {MAX_NAME} letters, digits, '-', '_', '.' or '/', beginning with a letter or digit"
        raise InvalidRequestError.for_field(field, f"{expected}, without '..'", short_repr(name))


def check_channels(channels: Any) -> None:
    """Raises InvalidWeightsError for what is not a number of an input's channels."""
    if isinstance(channels, bool) or not isinstance(channels, int | np.integer) or not 0 < channels < 2**31:
        expected = "the number of the input's channels, above 0"
        raise InvalidWeightsError.for_field("input_channels", expected, short_repr(channels))


def layer_to_put(layer: Any, kernel: Any, bias: Any, seed: int | None, input_channels: int | None) -> Layer:
    """Returns the layer that the arguments of `Client.put` describe, with weights of its own.

    What is stored is a value: it must not change where the caller later writes to the array that was given.

    Raises InvalidArgumentError if they contradict each other, or for a layer of Keras' that is none of ours.
    """
    if _is_of_keras(layer):
        layer = _from_keras(layer)
    if isinstance(layer, Conv2D):
        checked = Layer(layer if seed is None else layer.with_seed(seed), kernel, bias)
    elif not isinstance(layer, Layer) or kernel is not None or bias is not None:
        expected = "a Conv2D with or without kernel= and bias=, or a Layer or one of Keras', which have them"
        raise InvalidRequestError.for_field("layer", expected, short_repr(layer))
    else:
        checked = layer if layer.kernel is not None or seed is None else Layer(layer.config.with_seed(seed))
    if checked.kernel is None:
        checked.config.check_initializers()
        return checked
    if seed is not None:
        expected = "no seed beside weights, which need not be drawn"
        raise InvalidRequestError.for_field("seed", expected, f"seed={short_repr(seed)}")
    if input_channels is not None:
        check_channels(input_channels)
        check_kernel_channels(checked.config, checked.kernel.shape, input_channels)
    own = [None if weight is None else weight.copy() for weight in (checked.kernel, checked.bias)]
    for weight in own:
        if weight is not None:
            weight.flags.writeable = False
    return Layer(checked.config, *own)


def _is_of_keras(layer: Any) -> bool:
    return any(kind.__module__.partition(".")[0] in ("keras", "tf_keras") for kind in type(layer).__mro__)


def _from_keras(layer: Any) -> Layer:
    made = Layer.from_keras(layer)
    if isinstance(made, Layer):
        return made
    received = f"a {type(layer).__name__}, which is a chain of {len(made)}"
    raise InvalidRequestError.for_field("layer", "one layer", received, "Put each of Layer.from_keras(layer).")


def listed_parts(servers: Iterable[Iterable[dict[str, Any]]], name_prefix: str) -> list[dict[str, Any]]:
    """Returns the arguments of a StoredLayerBase for each layer, in the order of digests, from those of each server.

    Its name is the first that begins with the prefix; its names are those that it has on any server.
    """
    by_digest: dict[bytes, dict[str, Any]] = {}
    for listed in itertools.chain.from_iterable(servers):
        parts = by_digest.setdefault(listed["digest"], listed)
        parts["names"] = tuple(sorted({*parts["names"], *listed["names"]}))
        parts["name"] = next((name for name in parts["names"] if name.startswith(name_prefix)), None)
    return [by_digest[digest] for digest in sorted(by_digest)]


def check_prefix(prefix: object) -> None:
    """Raises InvalidRequestError for what is no beginning of names, or the beginning of all."""
    if not isinstance(prefix, str) or not prefix:
        raise InvalidRequestError.for_field("prefix", "the beginning of names, such as m1/", short_repr(prefix))


def checked_folder(folder: Any) -> Path:
    """Returns the path of a folder; raises InvalidRequestError for what is none."""
    if not isinstance(folder, str | os.PathLike) or "\0" in str(folder):
        raise InvalidRequestError.for_field("folder", "the path of a folder", short_repr(folder))
    return Path(folder)


def names_in(layers: Iterable[StoredLayerBase], prefix: str) -> list[str]:
    """Returns the names of layers that begin so, sorted."""
    return sorted({name for layer in layers for name in layer.names if name.startswith(prefix)})


def deleted_text(deleted: list[str], count: int) -> str:
    """Returns what was deleted of so many names before something went wrong."""
    last = f", the last of them {deleted[-1]!r}" if deleted else ""
    return f"deleted {len(deleted)} of {count} names{last}; another attempt deletes the others"


@reading_answers
def known_parts(message: layer_pb2.StoredLayer, name: str | None, sent: Layer | None = None) -> dict[str, Any]:
    """Returns the arguments of StoredLayerBase that a message gives.

    Raises InternalError for what is no stored layer, or another one than was sent.
    """
    config = messages.from_message(message.conv2d)
    shape = checked_shape(message.kernel_shape, "kernel")
    check_weight_shapes(config, shape, config.use_bias)
    if len(message.digest) != DIGEST_BYTES:
        raise DecodeError(f"a digest of {len(message.digest)} bytes")
    local = None if sent is None or sent.kernel is None else sent
    if sent is not None and not compute_alike(config, sent.config):
        raise DecodeError(f"another configuration than was sent, {short_repr(config)}")
    if local is not None and (message.digest, shape) != (local.digest, local.kernel_shape):
        raise DecodeError(f"the digest {message.digest.hex()}, of another layer than was sent")
    for listed in message.names:
        check_name(listed, "names")
    return {
        "digest": message.digest,
        "name": name,
        "names": tuple(message.names),
        "config": config,
        "kernel_shape": shape,
        "local": local,
    }
