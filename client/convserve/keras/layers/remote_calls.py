"""What a remote layer keeps of its server: the connection, and the stored layers of the weights that it had last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve._rpc.channel import Target, given_target
from convserve._rpc.credentials import TLS
from convserve._sync.client import Client
from convserve._sync.stored_layer import StoredLayer
from convserve.errors import ConvserveError, OverloadedError, PermissionDeniedError, TooLargeError
from convserve.keras.layers.steps import Steps, height_axis, layers_of
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array, Shape, numpy_dtype

Server = str | tuple[str, ...]
"""A client's target, in a form that can be a key."""

KERAS_MARK = "_keras_call_info_injected"
"""The attribute, private to Keras, of an exception that Keras leaves alone; others it makes anew from their text."""

_clients: dict[Server, Client] = {}
_granted: dict[Server, tuple[str | None, TLS | bool | None]] = {}  # this process' tokens and TLS; no layer keeps them


class Remote:
    """A layer's side of the connection."""

    def __init__(self, server: Server, timeout: float | None) -> None:
        self.server = server
        self.timeout = timeout
        self._put: _Put | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make it again; a connection is not copied."""
        return type(self), (self.server, self.timeout)

    def convolve(self, layer: str, steps: Steps, x: Array, *weights: Array) -> Array:
        """Returns the output of a layer's steps for an input, of rank 3 or 4 as these take it, with all their weights.

        Raises a ConvserveError with a note of the layer, whose class and name are given, and the server.
        """
        with in_layer(f"{layer} on {self.server}"):
            axis = height_axis(steps)
            given = x if axis is None else np.expand_dims(x, axis)
            if len(x) == 0:  # a server refuses an empty batch, Keras does not
                shape: Shape = (1, *given.shape[1:])
                for each in layers_of(steps, weights):
                    shape = each.config.output_shape(shape)
                output = np.zeros((0, *shape[1:]), numpy_dtype(steps[-1].compute_dtype))
            else:
                put = self._stored(steps, weights)
                if len(put.layers) == 1:
                    output = put.layers[0](given, timeout=self.timeout)
                else:
                    output = put.client.convolve(put.layers, given, timeout=self.timeout).output
            return output if axis is None else output.squeeze(axis)

    def _stored(self, steps: Steps, weights: tuple[Array, ...]) -> _Put:
        """Returns the stored layers of these steps and weights; they are put if they are not those put last.

        Every call compares all bits of the weights: that is right whichever way a variable was changed, and takes a
        fraction of the time that hashing them would.
        """
        client = _client(self.server)
        put = self._put
        # With another client it has the token of before.
        if put and put.client is client and put.steps == steps and all(map(_same_bits, put.weights, weights)):
            return put
        own = tuple(weight.copy() for weight in weights)  # TensorFlow lends these arrays for the time of the call
        layers = [self._store(client, layer) for layer in layers_of(steps, own)]
        if len(steps) == 1:  # these arrays, kept already
            kept = [layer.local.arrays for layer in layers if layer.local is not None]
            arrays = [each["kernel"] for each in kept] + [each["bias"] for each in kept if "bias" in each]
            own = tuple(array.reshape(weight.shape) for array, weight in zip(arrays, own, strict=True))
        self._put = put = _Put(client, steps, own, layers)
        return put

    def _store(self, client: Client, layer: Layer) -> StoredLayer:
        try:
            return client.put(layer, timeout=self.timeout)
        except (OverloadedError, PermissionDeniedError, TooLargeError):
            # The server cannot keep it, or not for this caller, so its calls bring the weights along.
            return StoredLayer(
                client, digest=layer.digest, config=layer.config, kernel_shape=layer.kernel_shape, local=layer
            )


@dataclass(frozen=True, eq=False)
class _Put:
    """What was put last, and as what."""

    client: Client
    steps: Steps
    weights: tuple[Array, ...]
    layers: list[StoredLayer]


def _same_bits(a: Array, b: Array) -> bool:
    bits = f"u{a.dtype.itemsize}"  # as floats, NaN would differ from itself, and -0 would not differ from 0
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.view(bits), b.view(bits))


def _client(server: Server) -> Client:
    if server not in _clients:
        token, tls = _granted.get(server, (None, None))
        made = Client(server, token=token, tls=tls)
        if _clients.setdefault(server, made) is not made:  # atomic, and unlike a lock it survives a fork
            made.close()
    return _clients[server]


def granted(server: Target | None, token: str | None, tls: TLS | bool | None) -> Server:
    """Returns a server's target, None being that of the environment.

    If a token or TLS is given, all layers of this server call it with these from now on. Raises as Client does.
    """
    server, _ = given_target(server)
    target, credentials = server if isinstance(server, str) else tuple(server), (token, tls)
    if credentials not in ((None, None), _granted.get(target)):
        _clients[target] = Client(target, token=token, tls=tls)
        _granted[target] = credentials
    return target


@contextmanager
def in_layer(layer: str) -> Iterator[None]:
    """Says in which layer the block failed, and has Keras leave the exception what it is."""
    try:
        yield
    except ConvserveError as error:
        if not hasattr(error, KERAS_MARK):
            setattr(error, KERAS_MARK, True)
            error.add_note(f"In the {layer}.")
        raise
