"""Convolve: a stage of Ray Data's that applies layers to a column of images. This module needs no Ray itself.

>>> import convserve.ray
>>> features = images.map_batches(
...     convserve.ray.Convolve,
...     fn_constructor_kwargs={"layers": [stem], "server": "10.0.0.1:50051"},
...     compute=ray.data.ActorPoolStrategy(size=4),
... )
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from convserve._rpc.map_schedule import DEFAULT_MAX_BYTES
from convserve._rpc.retries import RetryRule
from convserve._sync.client import Client
from convserve._sync.stored_layer import StoredLayer
from convserve.errors import ConvserveError, InvalidRequestError, naming_layer, short_repr
from convserve.layers.layer import Layer
from convserve.protocol.call_arguments import OneLayer, checked_timeout, output_name
from convserve.protocol.stored_layers import StoredLayerBase, layer_to_put
from convserve.tensors.codec import Array

OUTAGE_S = 1800.0
"""How long a batch waits for servers that are away, if nothing else is said: what a machine takes to be replaced."""

_NAME_S = 10.0
_FOREVER = {"attempts": math.inf, "budget": math.inf}  # within a batch's time

_Layer = Layer | StoredLayerBase
Batch = Mapping[str, Array]
"""A batch as Ray gives it with `batch_format="numpy"`, which is its default: arrays by column."""


class Convolve:
    """Applies layers to one column of each batch, and puts the output into another.

    Each of Ray's actors that runs it is a client of servers (`server`), or computes itself (`device`, for which the
    actor needs `convserve[server]`, and `num_gpus=1` for a GPU). An exception would end the job, so that a client
    waits for servers that are away, or too busy, for `timeout`; what is the caller's fault is raised at once. Servers
    that have lost a layer are given it again. A batch is computed as one call; images of several sizes, which Ray
    gives as an array of arrays, as many.

    It is a value until it is called: it connects, or starts TensorFlow, in the process that first calls it, where
    threads may share it.

    Args:
        layers: A Layer with weights, a Conv2D with seeds, a stored layer, or with `server` the name of one; or a list
            of them. A name that ends with "/" is for all layers with names that begin so, in the order of the names.
            Names are looked up once in each actor: unless the server's layers outlive it, give layers.
        server: The servers: what `Client` takes as its target, or a Client, whose settings the actors' clients have.
            A token is better given as CONVSERVE_TOKEN in Ray's `runtime_env`: with a Client it does not go along.
        device: What computes, as `convserve_server.local.Engine` takes it.
        settings: With `device`, the settings of the Engine, such as {"max_call_bytes": "8GB"}.
        column: The column of images: (batch, height, width, channels), or as `data_format` says.
        output: The column of the output, which is read-only where the batch's memory need not be copied.
        keep: Whether `column` stays in the batch.
        output_dtype: A floating-point dtype; None for the last layer's compute dtype.
        max_bytes: With `server`, the bytes of images and outputs that are in flight at most, where images have several
            sizes.
        timeout: Seconds that a batch may take, or an image where they have several sizes; None for as long as it takes.

    Raises:
        InvalidRequestError: For arguments that make no sense.
    """

    def __init__(
        self,
        layers: OneLayer | str | Sequence[OneLayer | str],
        *,
        server: str | Sequence[str] | Client | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        column: str = "image",
        output: str = "features",
        keep: bool = False,
        output_dtype: Any = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float | None = OUTAGE_S,
    ) -> None:
        if (server is None) == (device is None):
            received = "neither" if server is None else "both"
            raise InvalidRequestError.for_field("server", "either server= or device=", received)
        if settings is not None and device is None:
            raise InvalidRequestError.for_field("settings", "none beside server=, whose operator has them", settings)
        self._layers = _checked(layers, by_name=server is not None)
        self._server = server if server is None or isinstance(server, Client) else Client(server)
        self._device, self._settings = device, dict(settings or {})
        self._column, self._output, self._keep = column, output, keep
        self._output_dtype, self._max_bytes, self._timeout = output_name(output_dtype), max_bytes, timeout
        checked_timeout(timeout)
        self._begin()

    def _begin(self) -> None:
        self._forward: Callable[[Any], Any] | None = None  # until the first batch
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what the copy has, a subclass' attributes too; it connects, or starts TensorFlow, anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_forward", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begins anew."""
        vars(self).update(state)
        self._begin()

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Returns the batch with the output's column.

        Raises:
            InvalidRequestError: If the batch has no such column, or is none of arrays.
            InvalidArgumentError: For images that the layers cannot take, or a server never takes.
            LayerNotFoundError: If there is no layer of a name.
            ConvserveError: What did not come right within the timeout.
        """
        if not isinstance(batch, Mapping):
            expected = "a dict of arrays, Ray's batch_format='numpy'"
            raise InvalidRequestError.for_field("batch", expected, type(batch).__name__)
        if self._column not in batch:
            columns = ", ".join(map(repr, batch))
            raise InvalidRequestError.for_field("column", f"one of the batch's columns, {columns}", repr(self._column))
        with self._lock:
            if self._forward is None:
                self._forward = self._remote(self._server) if self._server is not None else self._local()
        features = self._forward(batch[self._column])
        kept = {name: value for name, value in batch.items() if self._keep or name != self._column}
        return {**kept, self._output: features}

    def _local(self) -> Callable[[Any], Any]:
        # By its name: the client's package does not import the server's, which need not be there.
        engine = importlib.import_module("convserve_server.local").Engine(self._device, **self._settings)

        def forward(images: Any) -> Any:
            options = {"output_dtype": self._output_dtype, "timeout": self._timeout}
            if _is_uniform(images):
                return engine.convolve(self._layers, images, **options).output
            return _ragged([engine.convolve(self._layers, image[np.newaxis], **options).output[0] for image in images])

        return forward

    def _remote(self, given: Client) -> Callable[[Any], Any]:
        retry = RetryRule(**vars(given._retry) | _FOREVER)
        client = Client(**given._arguments | {"retry": retry, "timeout": self._timeout})
        layers = [stored for layer in self._layers for stored in _stored(client, layer)]
        restored = [0] * len(layers)

        def forward(images: Any) -> Any:
            if _is_uniform(images):
                features = client.convolve(layers, images, output_dtype=self._output_dtype).output
            else:
                mapped = client.map(layers, images, output_dtype=self._output_dtype, max_bytes=self._max_bytes)
                features = _ragged(list(mapped))
            for index, layer in enumerate(layers):
                if isinstance(layer, StoredLayer) and layer.uploads != restored[index]:
                    restored[index] = layer.uploads
                    _restore_name(client, layer)
            return features

        return forward

    def __repr__(self) -> str:
        """Returns what computes, and the columns."""
        where = self._device if self._server is None else self._server
        return f"<convserve.ray.Convolve {where} {self._column!r} to {self._output!r}>"


def _checked(layers: Any, by_name: bool) -> list[_Layer | str]:
    listed = [layers] if isinstance(layers, str) or not isinstance(layers, Sequence) else list(layers)
    if not listed:
        raise InvalidRequestError.for_field("layers", "at least one layer", "none")
    checked: list[_Layer | str] = []
    for index, layer in enumerate(listed):
        with naming_layer(index, len(listed)):
            checked.append(_checked_layer(layer, by_name))
    return checked


def _checked_layer(layer: Any, by_name: bool) -> _Layer | str:
    if isinstance(layer, str):
        if not by_name:
            raise InvalidRequestError.for_field("layer", "a layer beside device=: names are a server's", repr(layer))
        return layer
    if isinstance(layer, StoredLayerBase):
        return layer
    made = layer_to_put(layer, None, None, None, None)
    if made.kernel is None and made.config.with_seed(0) != made.config:
        received = f"{short_repr(made.config)}, for which each actor would draw others"
        raise InvalidRequestError.for_field("layer", "a layer with weights or with seeds", received)
    return made


def _stored(client: Client, layer: _Layer | str) -> list[_Layer]:
    """Returns stored layers of a client, with weights that are known here, so that it can give them to servers again.

    Nothing is put: the first call gives servers what they lack, and brings it along where they keep none.
    """
    if isinstance(layer, Layer) and layer.kernel is None:
        return [layer]
    if isinstance(layer, str) and layer.endswith("/"):
        found = sorted(client.layers(layer), key=lambda each: str(each.name))
        if not found:
            raise InvalidRequestError.for_field("layers", "the beginning of stored layers' names", repr(layer))
    elif isinstance(layer, str):
        found = [client.layer(layer)]
    else:
        local = layer.local if isinstance(layer, StoredLayerBase) else layer
        parts = {"digest": layer.digest, "config": layer.config, "kernel_shape": layer.kernel_shape}
        found = [StoredLayer(client, **parts, local=local)]
    for each in found:
        each.weights()
    return list(found)


def _restore_name(client: Client, layer: StoredLayer) -> None:
    """Has a name lead again to a layer which a server had lost, and perhaps the name with it; one that leads on stays.

    Other actors look for the name when they start; this one's batches do not depend on it.
    """
    if layer.name is not None:
        with suppress(ConvserveError):
            client.put(layer.local, name=layer.name, expect="absent", timeout=_NAME_S)


def _is_uniform(images: Any) -> bool:
    return not (isinstance(images, np.ndarray) and images.dtype == object)


def _ragged(images: list[Array]) -> Array:
    """Returns arrays of several shapes as Ray takes them: an array of objects."""
    array = np.empty(len(images), object)
    for index, image in enumerate(images):  # at once NumPy would try to make one array of equal shapes
        array[index] = image
    return array
