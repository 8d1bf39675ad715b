"""Finds the layers that a request names: by digest, by name, or inline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from convserve.errors import ConvserveError, InvalidRequestError, naming_layer
from convserve.layers.layer import Layer
from convserve.v1 import layer_pb2
from convserve_server.layer_store.cache import at_rest
from convserve_server.layer_store.errors import checked_digest
from convserve_server.layer_store.store import LayerStore
from convserve_server.layer_store.stored_layer import Reference

log = logging.getLogger("convserve")

Found = TypeVar("Found")


def find_layers(
    references: Sequence[layer_pb2.LayerReference],
    store: LayerStore,
    find: Callable[[Reference], Found],
    *,
    may_store: bool = True,
) -> list[Layer | Found]:
    """Returns the layers of a call: stored ones as found, inline ones without weights where they are to be drawn.

    It stores those that travel with the call and ask for it, if the caller `may_store`. Raises InvalidArgumentError if
    a reference is incomplete or an inline layer is wrong, or LayerNotFoundError if one is not stored.
    """
    if not references:
        raise InvalidRequestError.for_field("layers", "at least one layer", "none")
    layers = []
    for index, reference in enumerate(references):
        with naming_layer(index, len(references)):
            layers.append(_layer(reference, store, find, may_store))
    return layers


def _layer(
    reference: layer_pb2.LayerReference, store: LayerStore, find: Callable[[Reference], Found], may_store: bool
) -> Layer | Found:
    match reference.WhichOneof("layer"):
        case "digest":
            return find(checked_digest(reference.digest))
        case "name":
            return find(reference.name)
        case None:
            raise InvalidRequestError.for_field("layers", "a digest, a name or an inline layer", "none of them")
    layer = Layer.from_message(reference.inline)
    if reference.inline.store and may_store and layer.kernel is not None:
        layer = at_rest(layer)  # the call computes with the memory that the store keeps
        try:
            store.put(layer)
        except ConvserveError as error:  # the call does not depend on it
            log.debug("a layer that came with a call was not stored: %s", error)
    return layer
