# Generated from convserve/_async/stored_layer.py by client/unasync.py (make sync): change that one.
"""StoredLayer: a layer on the servers of a client."""

from __future__ import annotations

from typing import Any

from convserve._rpc import requests
from convserve._sync.connection import Connection
from convserve.errors import LayerNotFoundError
from convserve.layers.layer import Layer
from convserve.protocol import layer_messages, name_messages, stored_layers
from convserve.protocol.name_messages import Expect
from convserve.protocol.results import Losses
from convserve.tensors.codec import Array


class StoredLayer(stored_layers.StoredLayerBase):
    """A layer that the server stores: callable, put once and called often.

    `Client.put` and `Client.layer` make it.

    Attributes:
        digest: The 32 bytes that identify it on every server.
        name: The name under which it was put or found, or None.
        names: All names that led to it when it was put or found.
        config: Its configuration, every seed filled in.
        kernel_shape: Its kernel's shape.
    """

    def __init__(self, connection: Connection, **parts: Any) -> None:
        super().__init__(**parts)
        self._connection = connection

    def __call__(
        self, x: Any, *, output_dtype: Any = None, out: Array | None = None, timeout: float | None = None
    ) -> Array:
        """Returns the layer's output for an input; see `Client.conv2d`."""
        request = requests.convolve_request(self, x, output_dtype, out=out)
        return (self._connection._convolve(request, self._connection._deadline(timeout))).output

    def weights(self, *, timeout: float | None = None) -> tuple[Array, Array | None]:
        """Returns (kernel, bias), the bias being None without one; read from the server where they are not known here.

        Raises:
            LayerNotFoundError: If the server does not hold the layer any more.
        """
        layer = self._connection._fetch(self, self._connection._deadline(timeout))
        assert layer.kernel is not None  # noqa: S101 (it was read)
        return layer.kernel, layer.bias

    def to_keras(self, *, timeout: float | None = None) -> Any:
        """Returns a `keras.layers.Conv2D` with this configuration and these weights, which needs no server any more.

        Raises:
            MissingDependencyError: Without Keras.
        """
        return (self._connection._fetch(self, self._connection._deadline(timeout))).to_keras()

    def update_weights(
        self, kernel: Any, bias: Any = None, *, expect: Expect = None, timeout: float | None = None
    ) -> tuple[StoredLayer, Losses]:
        """Makes a layer of this one's configuration and new weights, to which its constraints are applied.

        This layer stays what it is; its name leads to the new one afterwards.

        Args:
            kernel: The new kernel.
            bias: The new bias.
            expect: What must be at the name, as in `Client.put`: `expect=layer` of `layer.update_weights` does not
                undo what another caller did.
            timeout: Seconds for this call.

        Returns:
            The new layer, and the penalties of its weights.

        Raises:
            InvalidWeightsError: If the weights don't fit.
            NameConflictError: If something else than expected is at the name; nothing was stored or moved.
            UnavailableError: If no server answered. Without `expect`, where one may have moved the name all the same,
                the call is not retried, so that it does not undo what another caller has done since.
            UnimplementedError: If the server is too old to know `expect`; it has moved no name.
        """
        connection = self._connection
        layer = Layer(self.config, kernel, bias)
        upload = layer_messages.update_upload(self, layer, expect)
        deadline = connection._deadline(timeout)
        uploads = self.uploads
        try:
            answer = connection._first(upload, deadline)
        except LayerNotFoundError:
            connection._upload([self], [uploads], deadline)
            answer = connection._first(upload, deadline)
        name_messages.check_heeded(expect, answer.version)
        # What constraints made of the weights, only the server knows.
        sent = Layer(self.config) if self.config.kernel_constraint or self.config.bias_constraint else layer
        parts = stored_layers.known_parts(answer.layer, self.name, sent) | {"local": None}
        made = StoredLayer(connection, **parts)
        return made, Losses.from_message(answer.losses)
