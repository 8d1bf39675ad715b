"""LayerService: messages to calls of the layer store and registry, and their results back to messages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from grpc import ServicerContext as Context

from convserve.errors import InvalidRequestError, InvalidTensorError, InvalidWeightsError, short_repr
from convserve.layers import messages as conv2d_message
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import parameter_count
from convserve.layers.weight_shapes import check_weight_shapes, weight_bytes
from convserve.protocol import layer_messages
from convserve.protocol.layer_messages import ALREADY_STORED, MAX_DIGESTS, SEND_WEIGHTS, WEIGHTS
from convserve.protocol.name_messages import MOVE_ID_BYTES
from convserve.protocol.stored_layers import check_name
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import FLOAT_DTYPES, Array, Shape, dtype_name, itemsize, numpy_dtype
from convserve.v1 import layer_pb2, layer_service_pb2_grpc
from convserve.v1 import layer_service_pb2 as messages
from convserve_server.layer_store.errors import checked_digest
from convserve_server.layer_store.names import Move
from convserve_server.layer_store.registry import LayerRegistry
from convserve_server.layer_store.stored_layer import Reference, StoredLayer
from convserve_server.observability.call_record import current_identity

SERVICE_NAME = messages.DESCRIPTOR.services_by_name["LayerService"].full_name

_MAX_LAYERS_A_PAGE = 1000
_MAX_BYTES_A_PAGE = 2**20  # if it has more than one layer


class LayerService(layer_service_pb2_grpc.LayerServiceServicer):
    """Answers LayerService."""

    def __init__(self, registry: LayerRegistry) -> None:
        self._registry = registry

    def PutLayer(
        self, request_iterator: Iterator[messages.PutLayerRequest], context: Context
    ) -> messages.PutLayerResponse:
        registry, start = self._registry, _start(request_iterator)
        move, digest = _move_of(start), _expected_digest(start)
        match start.WhichOneof("source"):
            case "weights":
                stored, existed, version = _put_weights(registry, start, move, digest, request_iterator, context)
            case None:
                if not digest:
                    expected = "weights, input_channels or the expected_digest of a stored layer"
                    raise InvalidRequestError.for_field("source", expected, "none")
                _no_more(request_iterator)
                stored, existed, version = registry.store.put(registry.store.layer(digest), move)
            case _:
                config, channels = conv2d_message.from_message(start.conv2d), start.input_channels
                registry.check_put(move, config, channels, digest)
                _no_more(request_iterator)
                stored, existed, version = registry.initialize_and_put(config, channels, move, digest, _caller())
        return messages.PutLayerResponse(layer=_stored_message(stored), existed=existed, version=version)

    def GetLayer(self, request: messages.GetLayerRequest, context: Context) -> messages.GetLayerResponse:
        stored = self._registry.store.describe(_reference(request.layer))
        return messages.GetLayerResponse(layer=_stored_message(stored))

    def ListLayers(self, request: messages.ListLayersRequest, context: Context) -> messages.ListLayersResponse:
        if request.page_size < 0:
            raise InvalidRequestError.for_field("page_size", "a number of at least 0", str(request.page_size))
        try:
            after = bytes.fromhex(request.page_token)
        except ValueError:
            after = b""
        if after.hex() != request.page_token or len(after) not in (0, 32):
            raise InvalidRequestError.for_field(
                "page_token", "a token that this server gave", short_repr(request.page_token)
            )
        size = min(request.page_size or 100, _MAX_LAYERS_A_PAGE)
        layers = self._registry.store.page(request.name_prefix, after, size + 1)
        page, page_bytes = messages.ListLayersResponse(), 0
        for stored in layers[:size]:
            message = _stored_message(stored)
            page_bytes += message.ByteSize()
            if page.layers and page_bytes > _MAX_BYTES_A_PAGE:
                break
            page.layers.append(message)
        if len(page.layers) < len(layers):
            page.next_page_token = page.layers[-1].digest.hex()
        return page

    def FindMissingLayers(
        self, request: messages.FindMissingLayersRequest, context: Context
    ) -> messages.FindMissingLayersResponse:
        if len(request.digests) > MAX_DIGESTS:
            raise InvalidRequestError.for_field("digests", f"at most {MAX_DIGESTS} digests", str(len(request.digests)))
        for digest in request.digests:
            checked_digest(digest)
        return messages.FindMissingLayersResponse(missing_digests=self._registry.store.missing(request.digests))

    def DeleteLayer(self, request: messages.DeleteLayerRequest, context: Context) -> messages.DeleteLayerResponse:
        self._registry.store.delete(_reference(request.layer))
        return messages.DeleteLayerResponse()

    def UpdateWeights(
        self, request_iterator: Iterator[messages.UpdateWeightsRequest], context: Context
    ) -> messages.UpdateWeightsResponse:
        registry = self._registry
        start = _start(request_iterator)
        move = _move_of(start)
        config = registry.store.layer(_reference(start.layer)).config  # not `describe`: it does not verify
        weights = _Weights.announced(start.weights, config)
        registry.check_put(move, config, weights.input_channels, b"")
        with _receiving(registry, config, weights, context) as received:
            context.send_initial_metadata(((WEIGHTS, SEND_WEIGHTS),))
            arrays = weights.receive(request_iterator)
            received()
            stored, losses, version = registry.update(config, *arrays, move)
        return messages.UpdateWeightsResponse(
            layer=_stored_message(stored), losses=losses.to_message(), version=version
        )

    def ReadWeights(
        self, request: messages.ReadWeightsRequest, context: Context
    ) -> Iterator[messages.ReadWeightsResponse]:
        layer = self._registry.store.layer(_reference(request.layer))
        yield messages.ReadWeightsResponse(start=layer_messages.weights_header(layer))
        for piece in layer_messages.weight_pieces(layer):
            yield messages.ReadWeightsResponse(piece=piece)

    def ListNameVersions(
        self, request: messages.ListNameVersionsRequest, context: Context
    ) -> messages.ListNameVersionsResponse:
        store = self._registry.store
        versions = store.versions(request.name)
        missing = set(store.missing(versions.digests, latest=True))
        listed = [
            messages.NameVersion(
                version=number, digest=version.digest, moved_us=version.moved_us, stored=version.digest not in missing
            )
            for number, version in enumerate(versions.versions, versions.first)
        ]
        return messages.ListNameVersionsResponse(versions=listed)

    def MoveName(self, request: messages.MoveNameRequest, context: Context) -> messages.MoveNameResponse:
        store, move = self._registry.store, _checked_move(request.move)
        goal = request.WhichOneof("to")
        if goal == "away" and request.away:
            store.remove_name(move)
            return messages.MoveNameResponse()
        if goal == "layer":
            stored, version = store.move(move, _reference(request.layer))
        elif goal == "version":
            stored, version = store.move(move, request.version)
        else:
            raise InvalidRequestError.for_field("to", "a layer, a version or away", "none of them")
        return messages.MoveNameResponse(layer=_stored_message(stored), version=version)


def _put_weights(
    registry: LayerRegistry, start: Any, move: Move, digest: bytes, requests: Iterator[Any], context: Context
) -> tuple[StoredLayer, bool, int]:
    """Stores a layer whose weights the caller has; returns what `LayerStore.put` does."""
    config = conv2d_message.from_message(start.conv2d)
    weights = _Weights.announced(start.weights, config)
    registry.check_put(move, config, weights.input_channels, digest)
    layer = registry.store.find(digest)
    if layer is not None:
        context.send_initial_metadata(((WEIGHTS, ALREADY_STORED),))
        first = next(requests, None)
        if first is None:
            return registry.store.put(layer, move)  # once more, if it was deleted meanwhile
        requests = itertools.chain((first,), requests)
    with _receiving(registry, config, weights, context) as received:
        if layer is None:
            context.send_initial_metadata(((WEIGHTS, SEND_WEIGHTS),))
        arrays = weights.receive(requests)
        received()
        return registry.store.put(Layer(config, *arrays), move, digest)


def _receiving(
    registry: LayerRegistry, config: Conv2D, weights: _Weights, context: Context
) -> AbstractContextManager[Callable[[], None]]:
    channels, dtype = weights.input_channels, weights.dtype
    return registry.receiving(config, channels, dtype, caller=_caller(), end=context.cancel)


def _caller() -> str:
    """Returns whose call this thread answers; "" if others look like it."""
    identity = current_identity()
    return identity.caller if identity.is_one_caller else ""


def _start(requests: Iterator[Any]) -> Any:
    """Returns the start of a stream, which must come first."""
    first = next(requests, None)
    if first is None or first.WhichOneof("message") != "start":
        received = "none" if first is None else f"a {first.WhichOneof('message') or 'message without content'}"
        raise InvalidRequestError.for_field("start", "a start as the first message", received)
    return first.start


def _no_more(requests: Iterator[Any]) -> None:
    if next(requests, None) is not None:
        raise InvalidRequestError.for_field("piece", "no pieces, as the start announces no weights", "one")


class _Weights(NamedTuple):
    """Weights that a start announces, and their dtype on the wire."""

    dtype: str
    kernel_shape: Shape
    bias_size: int  # elements; 0 without a bias
    input_channels: int

    @classmethod
    def announced(cls, header: messages.WeightsHeader, config: Conv2D) -> _Weights:
        """Checks a header against the layer's configuration. Raises InvalidWeightsError if such weights don't fit."""
        shape = tuple(header.kernel_shape)
        check_weight_shapes(config, shape, header.has_bias)
        try:
            dtype = dtype_name(header.dtype, "kernel", FLOAT_DTYPES)
        except InvalidTensorError as error:
            raise InvalidWeightsError(*error.violations) from None
        return cls(dtype, shape, config.filters if header.has_bias else 0, shape[2] * config.groups)

    def receive(self, requests: Iterator[Any]) -> tuple[Array, Array | None]:
        """Returns kernel and bias, put together from the pieces of a stream, the kernel in aligned memory."""
        kernel_bytes = math.prod(self.kernel_shape) * itemsize(self.dtype)
        total = kernel_bytes + self.bias_size * itemsize(self.dtype)
        expected = f"{total} bytes of weights, as the start announced"
        buffer = aligned_empty((total,), np.uint8)
        position = 0
        try:
            for request in requests:
                if request.WhichOneof("message") != "piece":
                    raise InvalidRequestError.for_field("piece", "a piece after the start", "another message")
                end = position + len(request.piece)
                if end > total:
                    raise InvalidRequestError.for_field("piece", expected, f"at least {end} bytes")
                buffer[position:end] = np.frombuffer(request.piece, np.uint8)
                position = end
            if position != total:
                raise InvalidRequestError.for_field("piece", expected, f"{position} bytes")
        except BaseException:
            # gRPC keeps the error of a call that ended early, and with it this frame, until Python looks for cycles.
            del buffer
            raise
        kernel, bias = (buffer[part].view(numpy_dtype(self.dtype)) for part in np.s_[:kernel_bytes, kernel_bytes:])
        return kernel.reshape(self.kernel_shape), bias if self.bias_size else None


def _reference(message: messages.StoredLayerReference) -> Reference:
    match message.WhichOneof("layer"):
        case "digest":
            return checked_digest(message.digest)
        case "name":
            return message.name
    raise InvalidRequestError.for_field("layer", "a digest or a name", "neither")


def _move_of(start: Any) -> Move:
    """Returns the move of a name that comes with a layer; one without a name if none does."""
    if not start.HasField("move"):
        return Move(start.name)
    if start.name:
        raise InvalidRequestError.for_field("name", "a name or a move", "both")
    return _checked_move(start.move)


def _checked_move(message: messages.NameMove) -> Move:
    check_name(message.name)
    expect = None
    match message.WhichOneof("expect"):
        case "digest":
            expect = checked_digest(message.digest, "expect")
        case "absent":
            if not message.absent:
                raise InvalidRequestError.for_field("expect", "absent to be true, or not set", "false")
            expect = b""
    if len(message.move_id) not in (0, MOVE_ID_BYTES):
        raise InvalidRequestError.for_field("move_id", f"{MOVE_ID_BYTES} bytes", f"{len(message.move_id)} bytes")
    return Move(message.name, expect, message.move_id)


def _expected_digest(start: Any) -> bytes:
    return checked_digest(start.expected_digest) if start.expected_digest else b""


def _stored_message(stored: StoredLayer) -> layer_pb2.StoredLayer:
    return layer_pb2.StoredLayer(
        digest=stored.digest,
        names=stored.names,
        conv2d=conv2d_message.to_message(stored.config),
        kernel_shape=stored.kernel_shape,
        parameter_count=parameter_count(stored.config, stored.kernel_shape),
        weight_bytes=weight_bytes(stored.config, stored.kernel_shape),
    )
