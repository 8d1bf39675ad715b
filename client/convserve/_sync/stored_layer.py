"""StoredLayer: a layer on the servers of a blocking client."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from convserve._rpc import retries
from convserve.errors import InvalidArgumentError, LayerNotFoundError, UnavailableError
from convserve.layers.layer import Layer
from convserve.protocol import layer_messages, stored_layers
from convserve.protocol.results import Losses
from convserve.tensors.codec import Array
from convserve.v1 import layer_service_pb2

if TYPE_CHECKING:
    from convserve._sync.client import Client


class StoredLayer(stored_layers.StoredLayerBase):
    """A layer that the server stores: callable, put once and called often. `Client.put` and `Client.layer` make it.

    Attributes:
        digest: The 32 bytes that identify it on every server.
        name: The name under which it was put or found, or None.
        names: All names that led to it when it was put or found.
        config: Its configuration, every seed filled in.
        kernel_shape: Its kernel's shape.
    """

    def __init__(self, client: Client, **known: Any) -> None:
        super().__init__(**known)
        self._client = client
        self._giving, self._process = threading.Lock(), os.getpid()

    def _give(self, gifts_before: int, deadline: retries.Deadline) -> bool:
        """Gives the layer to every server that lacks it, unless another call has done so since `gifts_before`.

        Returns whether all of them can keep it.
        """
        lock = self._lock()
        if not lock.acquire(timeout=deadline.remaining_s()):
            raise deadline.exceeded()
        try:
            if self.gifts != gifts_before:
                return True
            offer, sent = self._client._connected_layers().offer, layer_messages.sent_put(self._fetch(deadline), None)
            kept: bool = self._client._call(offer, sent, deadline, retries.RetryRule(attempts=1))
            self.gifts += 1
            return kept
        except UnavailableError:
            return False
        finally:
            lock.release()

    def _lock(self) -> threading.Lock:
        if self._process != os.getpid():  # another thread may have held it when the process was forked
            self._giving, self._process = threading.Lock(), os.getpid()
        return self._giving

    def _fetch(self, deadline: retries.Deadline) -> Layer:
        """Returns the layer with its weights, read if they are not known here, and drawn again if they are lost."""
        if self.local is None:
            servers = self._client._connected_layers()
            request = layer_service_pb2.ReadWeightsRequest(layer=layer_messages.stored_reference(self))
            try:
                answer = self._client._call(servers.read, request, deadline)
            except LayerNotFoundError as lost:
                try:
                    self._client._call(servers.put, layer_messages.sent_redraw(self), deadline)
                except InvalidArgumentError:  # other weights came out: these were not drawn
                    raise lost from None
                answer = self._client._call(servers.read, request, deadline)
            self.local = Layer(self.config, *layer_messages.weights_of(answer))
        return self.local

    def __call__(self, x: Any, *, output_dtype: Any = None, timeout: float | None = None) -> Array:
        """Returns the layer's output for an input; see `Client.conv2d`."""
        return self._client.convolve(self, x, output_dtype=output_dtype, timeout=timeout).output

    def weights(self, *, timeout: float | None = None) -> tuple[Array, Array | None]:
        """Returns (kernel, bias), the bias being None without one; read from the server where they are not known here.

        Raises:
            LayerNotFoundError: If the server does not hold the layer any more.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        layer = self._fetch(self._client._deadline(timeout))
        assert layer.kernel is not None  # noqa: S101 (it was read)
        return layer.kernel, layer.bias

    def to_keras(self, *, timeout: float | None = None) -> Any:
        """Returns a `keras.layers.Conv2D` with this configuration and these weights, which needs no server any more.

        Raises:
            MissingDependencyError: Without Keras.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        return self._fetch(self._client._deadline(timeout)).to_keras()

    def update_weights(
        self, kernel: Any, bias: Any = None, *, timeout: float | None = None
    ) -> tuple[StoredLayer, Losses]:
        """Makes a layer of this one's configuration and new weights, to which its constraints are applied.

        This layer stays what it is; its name leads to the new one afterwards.

        Returns:
            The new layer, and the penalties of its weights.

        Raises:
            InvalidWeightsError: If the weights don't fit.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        sent, deadline = (
            layer_messages.sent_update(self, Layer(self.config, kernel, bias)),
            self._client._deadline(timeout),
        )
        update = self._client._connected_layers().update
        try:
            answer = self._client._call(update, sent, deadline)
        except LayerNotFoundError:
            self._give(self.gifts, deadline)
            answer = self._client._call(update, sent, deadline)
        made = StoredLayer(self._client, **stored_layers.known_parts(answer.layer, self.name, None))
        return made, Losses.from_message(answer.losses)
