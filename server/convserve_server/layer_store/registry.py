"""The rules by which layers come into a store: what is checked before their weights arrive, and memory for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
from convserve_server.memory import slow_callers
from convserve_server.memory.shares import RESERVE, SMALL, Shares
from convserve_server.memory.slow_callers import PIECES, SlowCallers

_RETRY_AFTER_S = 1.0


class LayerRegistry:
    """Puts layers into a store, with an engine that initializes and constrains weights."""

    def __init__(
        self, engine: Engine, store: LayerStore, max_call_bytes: int, max_admitted_bytes: int, max_bytes: int
    ) -> None:
        """Takes what a call may take, what a layer on its way may take, and all of these together."""
        self.store, self._engine = store, engine
        self._max_call_bytes, self._max_admitted_bytes = max_call_bytes, max_admitted_bytes
        reserve = max_bytes // RESERVE
        self._max_bytes, self._bytes, self._reserve = max_bytes, Shares(max_bytes - reserve), Shares(reserve)
        self._lock, self._slow = threading.Lock(), SlowCallers()  # of what is reserved
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

    @contextmanager
    def receiving(
        self,
        config: Conv2D,
        input_channels: int,
        dtype: str,
        times: int = 2,
        caller: str = "",
        end: Callable[[], object] | None = None,
    ) -> Iterator[Callable[[], None]]:
        """Reserves memory for weights that arrive in a dtype, are cast to the policy's, and are written to a file.

        `times` is how often they are there beside how they arrive; the caller is "" if others look like it. `end` ends
        a call whose caller is slow to send them, where others find no memory. What is yielded is to be called when they
        are here. Raises TooLargeError if no layer may have so much, or no call such weights, or OverloadedError if
        there is none now.
        """
        weights, sent = _weight_bytes(config, input_channels), _weight_bytes(config, input_channels, dtype)
        size = sent + times * weights
        _check_size(weights, self._max_call_bytes, "max-call-bytes")
        _check_size(size, self._max_admitted_bytes, "max-admitted-bytes")
        call = object()
        with self._lock:
            pool = next((pool for pool in self._pools(size) if _fits(pool, caller, size)), None)
            if pool is not None:
                pool.take(caller, size)
                if end is not None:
                    self._slow.expect(call, caller, size, pool, PIECES.time_for(sent), end)
            else:
                late = self._slow.late_for(self._pools(size), size, lambda pool: _fits(pool, caller, size))
        if pool is None:
            slow_callers.end(late)
            raise self._no_room(size)
        try:
            yield lambda: self._forget(call)
        finally:
            with self._lock:
                self._slow.forget(call)
                pool.give_back(caller, size)

    def _forget(self, call: object) -> None:
        with self._lock:
            self._slow.forget(call)

    def _pools(self, size: int) -> list[Shares]:
        """Returns the bytes that a layer may have some of: small ones also of those that are reserved for such."""
        return [self._reserve, self._bytes] if size * SMALL <= self._max_bytes else [self._bytes]

    def _no_room(self, size: int) -> OverloadedError:
        text = (
            f"Expected {size} bytes of memory for a layer on its way. Received none: layers that are put, initialized "
            f"or updated take {self._bytes.used} of {self._bytes.total} bytes, and a caller leaves half to others. "
            "Retry."
        )
        return OverloadedError(text, retry_after_s=_RETRY_AFTER_S)

    def initialize_and_put(
        self, config: Conv2D, input_channels: int, move: Move, expected_digest: bytes, caller: str = ""
    ) -> tuple[StoredLayer, bool, int]:
        """Makes a layer's weights with its initializers and stores it, as `LayerStore.put`.

        If the move was made before, it returns the layer that was made then, perhaps with other seeds.
        """
        if made := self._made(move):
            return made
        config.check_initializers()
        times = 1 + drawing(config)
        _check_size((1 + times) * _weight_bytes(config, input_channels), self._max_call_bytes, "max-call-bytes")
        with self.receiving(config, input_channels, config.variable_dtype, times, caller):
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


def _fits(pool: Shares, caller: str, size: int) -> bool:
    """Returns whether a layer may have so many bytes: more than there are, if nobody has any.

    A caller's layers, but for a single one, leave as much to others.
    """
    return not pool.used or pool.fits(pool.sharer(caller), size)


def _weight_bytes(config: Conv2D, input_channels: int, dtype: str = "") -> int:
    return weight_bytes(config, kernel_shape(config, input_channels), dtype)


def _check_size(size: int, most: int, setting: str) -> None:
    """Raises TooLargeError if a layer takes more than a setting says."""
    if size > most:
        expected = f"a layer that takes at most {most} bytes, the server's --{setting}"
        raise TooLargeError.for_field("kernel", expected, f"one that takes {size}: ask the operator to raise it")
