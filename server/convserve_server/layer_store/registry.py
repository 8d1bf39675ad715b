"""The one path of a request about stored layers: find, draw, check, put, update, delete. It knows no gRPC."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from convserve.errors import (
    ConvserveError,
    FieldViolation,
    InvalidRequestError,
    InvalidWeightsError,
    LayerNotFoundError,
    OverloadedError,
    TooLargeError,
)
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import kernel_shape
from convserve.protocol.results import Losses
from convserve.protocol.stored_layers import check_name
from convserve.tensors.codec import Array, itemsize
from convserve_server.engine_api import Engine
from convserve_server.layer_store.names import NameVersions
from convserve_server.layer_store.store import LayerStore
from convserve_server.layer_store.stored_layer import StoredLayer, StoreUsage
from convserve_server.layer_store.upload_budget import UploadBudget

log = logging.getLogger("convserve")

# Services speak of these, and do not know the store.
__all__ = ["LayerRegistry", "NameVersions", "Reference", "StoredLayer"]

Reference = bytes | str
"""A stored layer's digest, or a name that leads to it."""


class LayerRegistry:
    """Keeps layers in a store, with an engine for what needs computing."""

    def __init__(self, engine: Engine, store: LayerStore, max_call_bytes: int) -> None:
        """Joins an engine and a store.

        Args:
            engine: Draws and constrains weights.
            store: Keeps layers.
            max_call_bytes: The most that the weights of a draw or an update may take, and that all of them and all puts
                under way may take together; the setting of that name.
        """
        self._engine = engine
        self._store = store
        self._max_call_bytes = max_call_bytes
        self._budget = UploadBudget(max_call_bytes)
        self._computing = threading.Lock()

    def layer(self, reference: Reference) -> Layer:
        """Returns a stored layer with its weights.

        Raises:
            LayerNotFoundError: If there is none.
        """
        return self._store.layer(self._digest(reference))

    def describe(self, reference: Reference) -> StoredLayer:
        """Returns what is known of a stored layer without its weights.

        Raises:
            LayerNotFoundError: If there is none.
        """
        return self._store.describe(self._digest(reference))

    def check_put(self, name: str, config: Conv2D, input_channels: int, expected_digest: bytes) -> None:
        """Checks what can be checked of a put or update before its weights arrive. What is held already needs no room.

        Raises:
            InvalidArgumentError: For a wrong name, or channels that the configuration cannot take.
            TooLargeError: If it could never be stored.
            OverloadedError: If there is no room now.
        """
        if name:
            check_name(name)
        if input_channels < 1 or input_channels % config.groups:
            text = f"Expected a number above 0 that groups={config.groups} divides. Received {input_channels} channels."
            raise InvalidWeightsError(FieldViolation("kernel", text))
        try:
            self._store.check_room(_elements(config, input_channels) * itemsize(config.variable_dtype), name)
        except OverloadedError:
            if expected_digest not in self._store:
                raise

    @contextmanager
    def receiving(self, config: Conv2D, input_channels: int, dtype: str) -> Iterator[None]:
        """Sets memory aside for weights that arrive in a dtype, are cast to the policy's, and are written to a file.

        Raises:
            OverloadedError: If other calls have it for the time being.
        """
        size = _elements(config, input_channels) * (itemsize(dtype) + 2 * itemsize(config.variable_dtype))
        with self._budget.reserved(size):
            yield

    def check_computable(self, config: Conv2D, input_channels: int) -> None:
        """Checks that weights may be drawn or updated.

        Raises:
            TooLargeError: If they are larger than any call may be.
        """
        size = _elements(config, input_channels) * itemsize(config.variable_dtype)
        if size > self._max_call_bytes:
            text = (
                f"Expected weights of at most {self._max_call_bytes} bytes, the server's --max-call-bytes. "
                f"Received {size}: ask the operator to raise it."
            )
            raise TooLargeError(FieldViolation("kernel", text))

    def held(self, digest: bytes) -> Layer | None:
        """Returns the layer with this digest, read and verified, or None. It can be put again if it goes meanwhile."""
        try:
            return self._store.layer(digest)
        except LayerNotFoundError:
            return None

    def put(self, layer: Layer, name: str, expected_digest: bytes) -> tuple[StoredLayer, bool]:
        """Stores a layer with given weights; returns it and whether it was there before.

        Raises:
            InvalidRequestError: If its digest is not the expected one.
            ConvserveError: As `LayerStore.put`.
        """
        if expected_digest and layer.digest != expected_digest:
            text = (
                f"Expected what arrives to have the digest {expected_digest.hex()}. "
                f"Received a layer with digest {layer.digest.hex()}."
            )
            raise InvalidRequestError(FieldViolation("expected_digest", text))
        return self._store.put(layer, name)

    def name(self, digest: bytes, name: str) -> StoredLayer:
        """Lets a name lead to a layer that is stored already.

        Raises:
            LayerNotFoundError: If it is not stored.
        """
        stored, _ = self._store.put(self._store.layer(digest), name)
        return stored

    def draw_and_put(
        self, config: Conv2D, input_channels: int, name: str, expected_digest: bytes
    ) -> tuple[StoredLayer, bool]:
        """Draws a layer's weights with its initializers and stores it.

        Raises:
            ConvserveError: As `put`; InvalidConfigurationError for an initializer that cannot.
        """
        config.check_initializers()
        self.check_computable(config, input_channels)
        with self.receiving(config, input_channels, config.variable_dtype):
            with self._computing:  # one at a time, beside the calls
                drawn = self._engine.initialize(config, input_channels)
            return self.put(drawn, name, expected_digest)

    def keep(self, layer: Layer) -> None:
        """Stores a layer that came with a call, if there is room; the call does not depend on it."""
        try:
            self._store.put(layer)
        except ConvserveError as error:
            log.debug("a layer that came with a call was not stored: %s", error)

    def update(self, config: Conv2D, kernel: Array, bias: Array | None, name: str) -> tuple[StoredLayer, Losses]:
        """Makes a layer from a stored one's configuration and new weights, to which its constraints are applied.

        The name, if one is given, leads to the new layer afterwards.

        Raises:
            ConvserveError: As `put`.
        """
        given = Layer(config, kernel, bias)
        with self._computing:
            updated, losses = self._engine.constrain(given)
        stored, _ = self._store.put(updated, name)
        return stored, losses

    def delete(self, reference: Reference) -> None:
        """Deletes a layer with its names, or a name, and its layer with the last one.

        Raises:
            LayerNotFoundError: If there is none.
        """
        if isinstance(reference, str):
            self._store.delete_name(reference)
        else:
            self._store.delete(reference)

    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns those digests that are not stored."""
        return self._store.missing(digests)

    def page(self, prefix: str, after: bytes, size: int) -> list[StoredLayer]:
        """Returns a page of stored layers; see `LayerStore.page`."""
        return self._store.page(prefix, after, size)

    def names(self) -> tuple[str, ...]:
        """Returns the names of all layers, sorted, of lost ones too."""
        return self._store.names()

    def versions(self, name: str) -> NameVersions:
        """Returns the layers that a name has led to, of which some may not be stored any more.

        Raises:
            LayerNotFoundError: If there is no such name.
        """
        return self._store.versions(name)

    def holds(self, digest: bytes) -> bool:
        """Returns whether a layer is stored."""
        return digest in self._store

    def pin(self, name: str) -> None:
        """Keeps the layer that a name leads to in memory; as `LayerStore.pin`."""
        self._store.pin(name)

    def unpin(self, name: str) -> None:
        """Ends what `pin` began."""
        self._store.unpin(name)

    def usage(self) -> StoreUsage:
        """Returns what the store holds."""
        return self._store.usage()

    def _digest(self, reference: Reference) -> bytes:
        return self._store.digest_of(reference) if isinstance(reference, str) else reference


def _elements(config: Conv2D, input_channels: int) -> int:
    height, width, inputs, filters = kernel_shape(config, input_channels)
    return height * width * inputs * filters + (filters if config.use_bias else 0)
