"""What a client knows of a layer that a server stores, and the messages of LayerService. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from convserve import conv2d_message
from convserve.conv2d import Conv2D
from convserve.errors import FieldViolation, InvalidRequestError, InvalidWeightsError, shown
from convserve.layer import Layer, check_kernel_channels
from convserve.tensor import FLOAT_DTYPES, Array, Shape, dtype_name, dtype_number, numpy_dtype
from convserve.v1 import layer_pb2, layer_service_pb2

WEIGHTS, HELD, WANTED = "convserve-weights", "held", "wanted"
"""The initial metadata in which a server says, before it is sent weights, whether it wants them."""

MOST_DIGESTS = 10_000
"""Of which a server says in one call whether it holds them."""

_PIECE_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


class KnownLayer:
    """A stored layer, by its digest, with its weights where this process has them.

    Attributes:
        digest: The 32 bytes that identify it on every server.
        name: The name under which it was put or found, or None.
        config: Its configuration, every seed filled in.
        kernel_shape: Its kernel's shape.
        local: The layer with its weights, if they came from this process or have been read; else None.
        gifts: How many times it was given to a server that lacked it.
    """

    def __init__(
        self, digest: bytes, name: str | None, config: Conv2D, kernel_shape: Shape, local: Layer | None
    ) -> None:
        self.digest = digest
        self.name = name
        self.config = config
        self.kernel_shape = kernel_shape
        self.local = local
        self.gifts = 0

    def check_input_channels(self, channels: int) -> None:
        """Checks that the layer's kernel is made for an input of so many channels.

        Raises:
            InvalidWeightsError: If it is not.
        """
        check_kernel_channels(self.config, self.kernel_shape, channels)

    def to_reference(self) -> layer_pb2.LayerReference:
        """Returns the message that names the layer."""
        return layer_pb2.LayerReference(digest=self.digest)

    def to_plan_reference(self) -> layer_pb2.LayerReference:
        """Returns the message with which a plan can be asked for, which needs no weights."""
        return Layer(self.config).to_reference()

    def to_carried_reference(self) -> layer_pb2.LayerReference:
        """Returns the message that brings the layer to a server that does not hold it."""
        if self.local is None:
            return self.to_reference()
        reference = self.local.to_reference()
        reference.inline.store = True
        return reference

    def __repr__(self) -> str:
        """Returns name, digest and configuration."""
        name = f"{self.name!r} " if self.name else ""
        return f"<{type(self).__name__} {name}{self.digest.hex()[:12]} {self.config!r}>"


def check_name(name: str) -> None:
    """Checks the name that a layer is to have; client and server both call it.

    Raises:
        InvalidRequestError: If it has other characters than allowed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        text = (
            "Expected 1 to 200 letters, digits, '-', '_', '.' or '/', beginning with a letter or digit, without '..'. "
            f"Received {shown(name)}."
        )
        raise InvalidRequestError(FieldViolation("name", text))


def put_start(layer: Layer, name: str | None) -> layer_service_pb2.PutLayerRequest:
    """Returns the first message that puts a layer with its weights."""
    assert layer.kernel is not None  # noqa: S101 (Client.put sends no other)
    start = layer_service_pb2.PutLayerStart(
        conv2d=conv2d_message.to_message(layer.config),
        name=name or "",
        weights=weights_header(layer),
        expected_digest=layer.digest,
    )
    return layer_service_pb2.PutLayerRequest(start=start)


def draw_start(config: Conv2D, name: str | None, input_channels: int | None) -> layer_service_pb2.PutLayerRequest:
    """Returns the message that lets the server draw a layer's weights.

    Raises:
        InvalidWeightsError: If nothing says how many channels the input has.
    """
    channels = input_channels
    if channels is None and config.input_shape is not None:
        channels = config.input_shape[2 if config.data_format == "channels_last" else 0]
    if channels is None:
        text = "Expected a kernel, or input_channels= for which the server draws one. Received neither."
        raise InvalidWeightsError(FieldViolation("kernel", text))
    start = layer_service_pb2.PutLayerStart(
        conv2d=conv2d_message.to_message(config), name=name or "", input_channels=channels
    )
    return layer_service_pb2.PutLayerRequest(start=start)


def update_start(known: KnownLayer, layer: Layer) -> layer_service_pb2.UpdateWeightsRequest:
    """Returns the first message that gives a stored layer's configuration new weights, and its name to the result."""
    start = layer_service_pb2.UpdateWeightsStart(
        layer=stored_reference(known, by_digest=True), weights=weights_header(layer), name=known.name or ""
    )
    return layer_service_pb2.UpdateWeightsRequest(start=start)


def said_of_weights(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | bytes | None:
    """Returns what a server's initial metadata says of the weights that a caller has; None with a refusal."""
    return next((value for key, value in metadata or () if key == WEIGHTS), None)


def weights_header(layer: Layer) -> layer_service_pb2.WeightsHeader:
    """Returns the head of a layer's weights."""
    assert layer.kernel is not None  # noqa: S101
    return layer_service_pb2.WeightsHeader(
        dtype=dtype_number(layer.kernel.dtype.name), kernel_shape=layer.kernel.shape, has_bias=layer.bias is not None
    )


def weight_pieces(layer: Layer) -> Iterator[bytes]:
    """Yields a layer's weights in pieces."""
    for weight in (layer.kernel, layer.bias):
        if weight is not None:
            elements = weight.reshape(-1).view("u1")
            for begin in range(0, elements.size, _PIECE_BYTES):
                yield elements[begin : begin + _PIECE_BYTES].tobytes()


def weights_of(responses: Iterable[layer_service_pb2.ReadWeightsResponse]) -> tuple[Array, Array | None]:
    """Returns kernel and bias from the messages of ReadWeights."""
    header, pieces = layer_service_pb2.WeightsHeader(), bytearray()
    for response in responses:
        if response.WhichOneof("message") == "start":
            header = response.start
        else:
            pieces += response.piece
    dtype = numpy_dtype(dtype_name(header.dtype, "kernel", FLOAT_DTYPES))
    elements = np.frombuffer(bytes(pieces), dtype)
    shape = tuple(header.kernel_shape)
    kernel, bias = np.split(elements, [int(np.prod(shape))])
    return kernel.reshape(shape), bias if header.has_bias else None


def layer_to_put(layer: Conv2D | Layer, kernel: Any, bias: Any, seed: int | None) -> Layer:
    """Returns the layer that the arguments of `Client.put` describe, with weights of its own.

    What is stored is a value: it must not change where the caller later writes to the array that was given.

    Raises:
        InvalidArgumentError: If they contradict each other.
    """
    if isinstance(layer, Conv2D):
        given = Layer(layer if seed is None else layer.with_seed(seed), kernel, bias)
    elif not isinstance(layer, Layer) or kernel is not None or bias is not None:
        text = "Expected a Conv2D with or without kernel= and bias=, or a Layer, which has them."
        raise InvalidRequestError(FieldViolation("layer", f"{text} Received {shown(layer)}."))
    else:
        given = layer if layer.kernel is not None or seed is None else Layer(layer.config.with_seed(seed))
    if given.kernel is None:
        given.config.check_initializers()
        return given
    return Layer(given.config, *(None if each is None else _frozen(each) for each in (given.kernel, given.bias)))


def _frozen(array: Array) -> Array:
    own = array.copy()
    own.flags.writeable = False
    return own


def stored_reference(layer: KnownLayer | str, *, by_digest: bool = False) -> layer_service_pb2.StoredLayerReference:
    """Returns the message that names a stored layer: by its name where it has one and may, else by its digest.

    Raises:
        InvalidRequestError: If it is neither a stored layer nor a name.
    """
    if isinstance(layer, str):
        return layer_service_pb2.StoredLayerReference(name=layer)
    if isinstance(layer, KnownLayer):
        if layer.name and not by_digest:
            return layer_service_pb2.StoredLayerReference(name=layer.name)
        return layer_service_pb2.StoredLayerReference(digest=layer.digest)
    raise InvalidRequestError(FieldViolation("layer", f"Expected a stored layer or a name. Received {shown(layer)}."))


def known_parts(message: layer_pb2.StoredLayer, name: str | None, local: Layer | None) -> dict[str, Any]:
    """Returns the arguments of KnownLayer that a message gives."""
    return {
        "digest": message.digest,
        "name": name,
        "config": conv2d_message.from_message(message.conv2d),
        "kernel_shape": tuple(message.kernel_shape),
        "local": local,
    }
