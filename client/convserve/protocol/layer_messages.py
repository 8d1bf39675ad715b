"""The messages of LayerService as both clients send and read them. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidRequestError, InvalidWeightsError, short_repr
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.protocol.name_messages import Expect, checked_digest, name_move
from convserve.protocol.stored_layers import StoredLayerBase, check_channels, check_name
from convserve.tensors.codec import dtype_number
from convserve.tensors.pieces import cut
from convserve.v1 import layer_service_pb2

WEIGHTS, ALREADY_STORED, SEND_WEIGHTS = "convserve-weights", "held", "wanted"
"""The key and values of the initial metadata with which a server says whether it wants the weights of an upload."""

MAX_DIGESTS = 10_000
"""The most digests in one FindMissingLayers."""

_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Upload:
    """A put or an update: a start, and after it a layer's weights if the server wants them.

    Attributes:
        start: The first message.
        layer: The layer; None if the server initializes the weights.
    """

    start: layer_service_pb2.PutLayerRequest | layer_service_pb2.UpdateWeightsRequest
    layer: Layer | None = None

    @property
    def wanted(self) -> tuple[str, str] | None:
        """The initial metadata with which the server asks for the weights; None if there are none to be asked for."""
        return (WEIGHTS, SEND_WEIGHTS) if self.layer else None

    @property
    def moves_name(self) -> bool:
        """Whether it gives a name to a layer, and would do so again, later, if it were sent again."""
        return bool(self.start.start.name)  # a `move` is made once

    @property
    def is_move(self) -> bool:
        """Whether it gives a name to a layer, and a server does so once, however often it is sent there."""
        return bool(self.start.start.HasField("move"))

    def pieces(self) -> Iterator[Any]:
        """Yields the messages with the weights."""
        for piece in weight_pieces(self.layer) if self.layer else ():
            yield type(self.start)(piece=piece)


def layer_upload(layer: Layer, name: str | None, expect: Expect = None) -> Upload:
    """Returns the upload of a layer with its weights.

    Raises InvalidRequestError for a name with other characters than allowed, and what `name_move` does.
    """
    return _put(layer.config, name, expect, layer, weights=weights_header(layer), expected_digest=layer.digest)


def config_upload(
    config: Conv2D,
    name: str | None,
    input_channels: int | None,
    expect: Expect = None,
    *,
    expected_digest: bytes = b"",
) -> Upload:
    """Returns the upload of a configuration, whose weights the server initializes.

    Raises InvalidWeightsError if nothing says how many channels the input has, or what does is no number, and what
    `layer_upload` does.
    """
    channels = input_channels
    if channels is None and config.input_shape is not None:
        channels = config.input_shape[2 if config.data_format == "channels_last" else 0]
    if channels is None:
        expected = "a kernel, or input_channels= for which the server draws one"
        raise InvalidWeightsError.for_field("kernel", expected, "neither")
    check_channels(channels)
    return _put(config, name, expect, None, input_channels=channels, expected_digest=expected_digest)


def _put(config: Conv2D, name: str | None, expect: Expect, layer: Layer | None, **parts: Any) -> Upload:
    naming = _naming(name, expect)
    start = layer_service_pb2.PutLayerStart(conv2d=messages.to_message(config), **naming, **parts)
    return Upload(layer_service_pb2.PutLayerRequest(start=start), layer)


def _naming(name: str | None, expect: Expect) -> dict[str, Any]:
    """Returns the fields of a start that say its name."""
    if expect is not None:
        if name is None:
            raise InvalidRequestError.for_field("expect", "a name of which it is expected", "no name")
        return {"move": name_move(name, expect)}
    if name is not None:
        check_name(name)
    return {"name": name}


def reinitialization(stored: StoredLayerBase) -> Upload:
    """Returns the upload with which a server initializes a layer again; INVALID_ARGUMENT if other weights come out."""
    return config_upload(
        stored.config, None, stored.kernel_shape[2] * stored.config.groups, expected_digest=stored.digest
    )


def update_upload(stored: StoredLayerBase, layer: Layer, expect: Expect = None) -> Upload:
    """Returns the upload of new weights for a stored layer's configuration; the layer's name moves to the result.

    Raises what `name_move` does.
    """
    start = layer_service_pb2.UpdateWeightsStart(
        layer=stored_reference(stored), weights=weights_header(layer), **_naming(stored.name, expect)
    )
    return Upload(layer_service_pb2.UpdateWeightsRequest(start=start), layer)


def stored_reference(
    layer: StoredLayerBase | str | None, digest: bytes | str | None = None
) -> layer_service_pb2.StoredLayerReference:
    """Returns the message of a stored layer's digest, or of a name; raises InvalidRequestError for anything else."""
    if digest is not None and layer is None:
        return layer_service_pb2.StoredLayerReference(digest=checked_digest(digest))
    if digest is not None:
        raise InvalidRequestError.for_field("digest", "a name or a digest", "both")
    if isinstance(layer, str) and layer.isprintable():  # not half of a surrogate pair, which UTF-8 has not
        return layer_service_pb2.StoredLayerReference(name=layer)
    if isinstance(layer, StoredLayerBase):
        return layer_service_pb2.StoredLayerReference(digest=layer.digest)
    raise InvalidRequestError.for_field("layer", "a stored layer or a name", short_repr(layer))


def list_request(name_prefix: str) -> layer_service_pb2.ListLayersRequest:
    """Returns the message that asks for the first page of layers; raises InvalidRequestError for what is no text."""
    if not isinstance(name_prefix, str) or not name_prefix.isprintable():
        raise InvalidRequestError.for_field("name_prefix", "the beginning of names", short_repr(name_prefix))
    return layer_service_pb2.ListLayersRequest(name_prefix=name_prefix, page_size=1000)


def missing_requests(layers: Sequence[Layer | StoredLayerBase]) -> list[layer_service_pb2.FindMissingLayersRequest]:
    """Returns the messages that ask for what is missing, each for as many layers as it may.

    Raises InvalidRequestError for anything but layers, or InvalidWeightsError for one without weights, so no digest.
    """
    if not isinstance(layers, Iterable):
        raise InvalidRequestError.for_field("layers", "a list of layers", short_repr(layers))
    for layer in layers:
        if not isinstance(layer, Layer | StoredLayerBase):
            received = f"{short_repr(layer)} among them"
            raise InvalidRequestError.for_field("layers", "layers with their weights", received)
    digests = [layer.digest for layer in layers]
    return [
        layer_service_pb2.FindMissingLayersRequest(digests=digests[begin : begin + MAX_DIGESTS])
        for begin in range(0, len(digests), MAX_DIGESTS)
    ]


def weights_header(layer: Layer) -> layer_service_pb2.WeightsHeader:
    """Returns the head of a layer's weights."""
    assert layer.kernel is not None  # noqa: S101
    return layer_service_pb2.WeightsHeader(
        dtype=dtype_number(layer.kernel.dtype.name), kernel_shape=layer.kernel.shape, has_bias=layer.bias is not None
    )


def weight_pieces(layer: Layer) -> Iterator[bytes]:
    """Yields a layer's weights in pieces."""
    for array in layer.arrays.values():
        yield from map(bytes, cut(array, _PIECE_BYTES))
