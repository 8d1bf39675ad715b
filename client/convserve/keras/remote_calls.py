"""What a RemoteConv2D keeps of its server: the connection, and the stored layer of the weights that it had last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from convserve._rpc.credentials import TLS
from convserve._sync.client import Client
from convserve._sync.stored_layer import StoredLayer
from convserve.errors import ConvserveError, OverloadedError, PermissionDeniedError, TooLargeError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import Array, numpy_dtype

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
        self._put: StoredLayer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make it again; a connection is not copied."""
        return type(self), (self.server, self.timeout)

    def convolve(self, name: str, config: Conv2D, x: Array, kernel: Array, bias: Array | None = None) -> Array:
        """Returns the output of the layer `name` for an input; raises a ConvserveError with a note of both names."""
        with in_layer(f"{name!r} on {self.server}"):
            if len(x) == 0:  # a server refuses an empty batch, Keras does not
                shape = config.output_shape((1, *x.shape[1:]))
                return np.zeros((0, *shape[1:]), numpy_dtype(config.compute_dtype))
            return self._stored(config, kernel, bias)(x, timeout=self.timeout)

    def _stored(self, config: Conv2D, kernel: Array, bias: Array | None) -> StoredLayer:
        """Returns the stored layer of this configuration and these weights; it is put if it is not the one put last.

        Every call compares all bits of the weights: that is right whichever way a variable was changed, and takes a
        fraction of the time that hashing them would.
        """
        client = _client(self.server)
        put = self._put if self._put and self._put._connection is client else None  # else it has the token of before
        last = put and put.local
        if put and last and last.config == config and _same_bits(last.kernel, kernel) and _same_bits(last.bias, bias):
            return put
        # Copies, for TensorFlow lends these arrays for the time of the call.
        layer = Layer(config, kernel.copy(), None if bias is None else bias.copy())
        try:
            self._put = put = client.put(layer, timeout=self.timeout)
        except (OverloadedError, PermissionDeniedError, TooLargeError):
            # The server cannot keep it, or not for this caller, so its calls bring the weights along.
            self._put = put = StoredLayer(
                client, digest=layer.digest, config=config, kernel_shape=kernel.shape, local=layer
            )
        return put


def _same_bits(a: Array | None, b: Array | None) -> bool:
    if a is None or b is None:
        return a is b
    bits = f"u{a.dtype.itemsize}"  # as floats, NaN would differ from itself, and -0 would not differ from 0
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.view(bits), b.view(bits))


def _client(server: Server) -> Client:
    if server not in _clients:
        token, tls = _granted.get(server, (None, None))
        made = Client(server, token=token, tls=tls)
        if _clients.setdefault(server, made) is not made:  # atomic, and unlike a lock it survives a fork
            made.close()
    return _clients[server]


def grant(server: Server, token: str | None, tls: TLS | bool | None) -> None:
    """Has all layers of a server call it with a token and TLS from now on, if any is given; raises as Client does."""
    credentials = token, tls
    if credentials not in ((None, None), _granted.get(server)):
        _clients[server] = Client(server, token=token, tls=tls)
        _granted[server] = credentials


@contextmanager
def in_layer(layer: str) -> Iterator[None]:
    """Says in which layer the block failed, and has Keras leave the exception what it is."""
    try:
        yield
    except ConvserveError as error:
        if not hasattr(error, KERAS_MARK):
            setattr(error, KERAS_MARK, True)
            error.add_note(f"In the RemoteConv2D {layer}.")
        raise
