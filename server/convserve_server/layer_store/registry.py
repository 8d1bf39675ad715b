"""The rules by which layers come into a store: what is checked before their weights arrive, and memory for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from convserve.errors import FieldViolation, InvalidWeightsError, OverloadedError, TooLargeError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import kernel_shape
from convserve.protocol.results import Losses
from convserve.protocol.stored_layers import check_name
from convserve.tensors.codec import Array, itemsize
from convserve_server.engine_api import Engine
from convserve_server.layer_store.store import LayerStore
from convserve_server.layer_store.stored_layer import StoredLayer

_RETRY_AFTER_S = 1.0


class LayerRegistry:
    """Puts layers into a store, with an engine that initializes and constrains weights.

    Attributes:
        store: The store, which everybody reads.
    """

    def __init__(self, engine: Engine, store: LayerStore, max_call_bytes: int) -> None:
        """Joins an engine and a store.

        Args:
            engine: Initializes and constrains weights.
            store: Keeps layers.
            max_call_bytes: The most that the weights of an initialization or an update may take, and that all of them
                and all uploads may take together; the setting of that name.
        """
        self.store = store
        self._engine = engine
        self._max_call_bytes = max_call_bytes
        self._reserved = 0
        self._lock = threading.Lock()  # of what is reserved
        self._computing = threading.Lock()

    def check_put(self, name: str, config: Conv2D, input_channels: int, expected_digest: bytes) -> None:
        """Checks what can be checked of a put or update before its weights arrive. What is stored needs no room.

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
            self.store.check_room(_elements(config, input_channels) * itemsize(config.variable_dtype), name)
        except OverloadedError:
            if expected_digest not in self.store:
                raise

    def check_computable(self, config: Conv2D, input_channels: int) -> None:
        """Checks that weights may be initialized or updated.

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

    @contextmanager
    def receiving(self, config: Conv2D, input_channels: int, dtype: str) -> Iterator[None]:
        """Reserves memory for weights that arrive in a dtype, are cast to the policy's, and are written to a file.

        It admits what is larger than all of it if nobody else has any.

        Raises:
            OverloadedError: If other calls have it for the time being.
        """
        size = _elements(config, input_channels) * (itemsize(dtype) + 2 * itemsize(config.variable_dtype))
        with self._lock:
            if self._reserved and self._reserved + size > self._max_call_bytes:
                text = (
                    f"Expected {size} bytes of memory for a layer on its way. Received none: layers that others put, "
                    f"initialize or update take {self._reserved} of {self._max_call_bytes} bytes. Retry."
                )
                raise OverloadedError(text, retry_after_s=_RETRY_AFTER_S)
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def initialize_and_put(
        self, config: Conv2D, input_channels: int, name: str, expected_digest: bytes
    ) -> tuple[StoredLayer, bool]:
        """Makes a layer's weights with its initializers and stores it.

        Raises:
            ConvserveError: As `LayerStore.put`; InvalidConfigurationError for an initializer that cannot.
        """
        config.check_initializers()
        self.check_computable(config, input_channels)
        with self.receiving(config, input_channels, config.variable_dtype):
            with self._computing:  # one at a time, beside the calls
                layer = self._engine.initialize(config, input_channels)
            return self.store.put(layer, name, expected_digest)

    def update(self, config: Conv2D, kernel: Array, bias: Array | None, name: str) -> tuple[StoredLayer, Losses]:
        """Makes a layer from a stored one's configuration and new weights, to which its constraints are applied.

        The name, if one is given, leads to the new layer afterwards.

        Raises:
            ConvserveError: As `LayerStore.put`.
        """
        given = Layer(config, kernel, bias)
        with self._computing:
            updated, losses = self._engine.constrain(given)
        return self.store.put(updated, name)[0], losses


def _elements(config: Conv2D, input_channels: int) -> int:
    height, width, inputs, filters = kernel_shape(config, input_channels)
    return height * width * inputs * filters + (filters if config.use_bias else 0)
