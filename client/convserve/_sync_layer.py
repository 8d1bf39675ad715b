"""StoredLayer: a layer on the servers of a blocking client."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from convserve import _rpc, stored
from convserve.layer import Layer
from convserve.result import Losses
from convserve.tensor import Array
from convserve.v1 import layer_service_pb2

if TYPE_CHECKING:
    from convserve._sync import Client


class StoredLayer(stored.KnownLayer):
    """A layer that the server stores: callable, put once and called often. `Client.put` and `Client.layer` make it.

    Attributes:
        digest: The 32 bytes that identify it on every server.
        name: The name under which it was put or found, or None.
        config: Its configuration, every seed filled in.
        kernel_shape: Its kernel's shape.
    """

    def __init__(self, client: Client, **known: Any) -> None:
        super().__init__(**known)
        self._client = client
        self._giving = threading.Lock()

    def _give(self, gifts_before: int, timeout: float | None) -> None:
        """Offers the layer to the servers until one lacks it, unless another call has done so since `gifts_before`."""
        self.weights(timeout=timeout)
        assert self.local is not None  # noqa: S101 (it was read)
        with self._giving:
            if self.gifts != gifts_before:
                return
            for _ in range(self._client._turns):
                answer = self._client._put_on_one(self.local, None, timeout, _rpc.RetryRule(attempts=1))
                if not answer.existed:
                    break
            self.gifts += 1

    def __call__(self, x: Any, *, output_dtype: Any = None, timeout: float | None = None) -> Array:
        """Returns the layer's output for an input; see `Client.conv2d`."""
        return self._client.convolve(self, x, output_dtype=output_dtype, timeout=timeout).output

    def weights(self, *, timeout: float | None = None) -> tuple[Array, Array | None]:
        """Returns (kernel, bias), the bias being None without one; read from the server where they are not known here.

        Raises:
            LayerNotFoundError: If the server does not hold the layer any more.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        if self.local is None:
            request = layer_service_pb2.ReadWeightsRequest(layer=stored.stored_reference(self, by_digest=True))
            read = self._client._connected_layers().ReadWeights
            # As a list, so that a stream that breaks is read again like any call.
            answer = self._client._look_up(lambda *a, **k: list(read(*a, **k)), request, timeout)
            self.local = Layer(self.config, *stored.weights_of(answer))
        assert self.local.kernel is not None  # noqa: S101 (it was read)
        return self.local.kernel, self.local.bias

    def to_keras(self, *, timeout: float | None = None) -> Any:
        """Returns a `keras.layers.Conv2D` with this configuration and these weights, which needs no server any more.

        Raises:
            MissingDependencyError: Without Keras.
            ConvserveError: Another of the tree in `convserve.errors`.
        """
        return Layer(self.config, *self.weights(timeout=timeout)).to_keras()

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
        given = Layer(self.config, kernel, bias)
        update, start = self._client._connected_layers().UpdateWeights, stored.update_start(self, given)
        send = sending(update, start, layer_service_pb2.UpdateWeightsRequest, given)
        answer = self._client._look_up(send, None, timeout)
        made = StoredLayer(self._client, **stored.known_parts(answer.layer, self.name, None))
        return made, Losses.from_message(answer.losses)


def sending(method: Any, start: Any, request: Any, layer: Layer | None) -> Callable[..., Any]:
    """Returns a call that sends a start, and a layer's weights if there is one and the server wants them."""

    def call_once(_: None, timeout: float) -> Any:
        said: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def messages() -> Iterator[Any]:
            yield start
            if layer and said.result() == stored.WANTED:
                for piece in stored.weight_pieces(layer):
                    yield request(piece=piece)

        try:
            call = method.future(messages(), timeout=timeout)
            if layer:
                said.set_result(stored.said_of_weights(call.initial_metadata()))
            return call.result()
        finally:
            said.cancel()  # if it came to no answer, so that nothing waits for one

    return call_once
