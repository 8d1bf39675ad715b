"""The rules by which layers come into a store: what is checked before their weights arrive, and memory for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from convserve.errors import InvalidWeightsError, LayerNotFoundError, OverloadedError, TooLargeError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import drawing, kernel_shape
from convserve.layers.weight_shapes import weight_bytes
from convserve.protocol.results import Losses
from convserve.protocol.stored_layers import check_name
from convserve.tensors.codec import Array
from convserve_server.engine_api import Engine
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.store import LayerStore
from convserve_server.layer_store.stored_layer import StoredLayer

_RETRY_AFTER_S = 1.0


class LayerRegistry:
    """Puts layers into a store, with an engine that initializes and constrains weights."""

    def __init__(self, engine: Engine, store: LayerStore, max_call_bytes: int, max_bytes: int = 0) -> None:
        """Takes what the weights of one initialization or update may take, and all of them and all uploads together."""
        self.store, self._engine = store, engine
        self._max_call_bytes, self._max_bytes = max_call_bytes, max_bytes or max_call_bytes
        self._reserved = 0
        self._lock = threading.Lock()  # of what is reserved
        self._computing = threading.Lock()

    def check_put(self, move: Move, config: Conv2D, input_channels: int, expected_digest: bytes) -> None:
        """Checks what can be checked of a put or update before its weights arrive. What is stored needs no room.

        Raises InvalidArgumentError for a wrong name or wrong channels, and what `LayerStore.check_room` does, and
        `check_move` if the digest is known.
        """
        if move.name:
            check_name(move.name)
            if expected_digest:
                self.store.check_move(move, expected_digest)
        if input_channels < 1 or input_channels % config.groups:
            expected = f"a number above 0 that groups={config.groups} divides"
            raise InvalidWeightsError.for_field("kernel", expected, f"{input_channels} channels")
        try:
            self.store.check_room(_weight_bytes(config, input_channels), move.name)
        except OverloadedError:
            if expected_digest not in self.store:
                raise

    def check_computable(self, config: Conv2D, input_channels: int, times: int = 1) -> None:
        """Checks that weights may be initialized or updated, which takes so many times their bytes.

        Raises TooLargeError if that is more than a call may take.
        """
        size = times * _weight_bytes(config, input_channels)
        if size > self._max_call_bytes:
            expected = f"weights that take at most {self._max_call_bytes} bytes, the server's --max-call-bytes"
            raise TooLargeError.for_field("kernel", expected, f"{size}: ask the operator to raise it")

    @contextmanager
    def receiving(self, config: Conv2D, input_channels: int, dtype: str, times: int = 2) -> Iterator[None]:
        """Reserves memory for weights that arrive in a dtype, are cast to the policy's, and are written to a file.

        `times` is how often they are there beside how they arrive. It admits what is larger than all of the memory if
        nobody else has any; else OverloadedError if others have it now.
        """
        size = _weight_bytes(config, input_channels, dtype) + times * _weight_bytes(config, input_channels)
        with self._lock:
            if self._reserved and self._reserved + size > self._max_bytes:
                text = (
                    f"Expected {size} bytes of memory for a layer on its way. Received none: layers that others put, "
                    f"initialize or update take {self._reserved} of {self._max_bytes} bytes. Retry."
                )
                raise OverloadedError(text, retry_after_s=_RETRY_AFTER_S)
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def initialize_and_put(
        self, config: Conv2D, input_channels: int, move: Move, expected_digest: bytes
    ) -> tuple[StoredLayer, bool, int]:
        """Makes a layer's weights with its initializers and stores it, as `LayerStore.put`.

        If the move was made before, it returns the layer that was made then, perhaps with other seeds.
        """
        if made := self._made(move):
            return made
        config.check_initializers()
        times = 1 + drawing(config)
        self.check_computable(config, input_channels, 1 + times)
        with self.receiving(config, input_channels, config.variable_dtype, times):
            with self._computing:  # one at a time, beside the calls
                layer = self._engine.initialize(config, input_channels)
            stored = self.store.put(layer, move, expected_digest)
        made = self._made(move)  # by another attempt just now, with other weights
        return made if made and made[0].digest != stored[0].digest else stored

    def _made(self, move: Move) -> tuple[StoredLayer, bool, int] | None:
        with suppress(LayerNotFoundError):  # it was deleted since
            if made := self.store.made(move):
                return made[0], True, made[1]
        return None

    def update(self, config: Conv2D, kernel: Array, bias: Array | None, move: Move) -> tuple[StoredLayer, Losses, int]:
        """Makes a layer from a stored one's configuration and new weights, to which its constraints are applied.

        The name, if one is given, leads to the new layer afterwards, as with `LayerStore.put`; its version is returned.
        """
        given = Layer(config, kernel, bias)
        with self._computing:
            updated, losses = self._engine.constrain(given)
        stored, _, version = self.store.put(updated, move)
        return stored, losses, version


def _weight_bytes(config: Conv2D, input_channels: int, dtype: str = "") -> int:
    return weight_bytes(config, kernel_shape(config, input_channels), dtype)
