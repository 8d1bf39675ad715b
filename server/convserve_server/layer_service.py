"""LayerService: messages to the layer keeper's words, and its answers back to messages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from convserve import InvalidRequestError, Layer, UnavailableError, conv2d_message
from convserve.errors import FieldViolation, InvalidTensorError, InvalidWeightsError, shown
from convserve.layer import check_weight_shapes
from convserve.stored import HELD, WANTED, WEIGHTS
from convserve.tensor import FLOAT_DTYPES, Array, checked_shape, dtype_name, dtype_number, itemsize, numpy_dtype
from convserve.v1 import layer_pb2, layer_service_pb2_grpc
from convserve.v1 import layer_service_pb2 as messages
from convserve_server.layer_keeper import LayerKeeper, Reference, StoredLayer

SERVICE_NAME = messages.DESCRIPTOR.services_by_name["LayerService"].full_name

_PIECE_BYTES = 2**20
_MOST_DIGESTS = 10_000
_MOST_LAYERS_A_PAGE = 1000


class LayerService(layer_service_pb2_grpc.LayerServiceServicer):
    """Answers LayerService. Until it is opened, every call is told to come back."""

    def __init__(self) -> None:
        self._opened: LayerKeeper | None = None

    def open(self, keeper: LayerKeeper) -> None:
        """Serves with this keeper from now on."""
        self._opened = keeper

    @property
    def _keeper(self) -> LayerKeeper:
        if self._opened is None:
            raise UnavailableError("Expected a server that is ready. This one is still starting; retry.")
        return self._opened

    def PutLayer(
        self, request_iterator: Iterator[messages.PutLayerRequest], context: grpc.ServicerContext
    ) -> messages.PutLayerResponse:
        keeper = self._keeper
        start = _start(request_iterator)
        source = start.WhichOneof("source")
        if source is None:
            if not start.expected_digest:
                raise _refusal("source", "weights, input_channels or the expected_digest of a stored layer", "none")
            _no_more(request_iterator)
            stored = keeper.name(_checked_digest(start.expected_digest), start.name)
            return messages.PutLayerResponse(layer=_stored_message(stored), existed=True)
        config = conv2d_message.from_message(start.conv2d)
        if source == "weights":
            channels = start.weights.kernel_shape[2] * config.groups if len(start.weights.kernel_shape) == 4 else 0
            check_weight_shapes(config, tuple(start.weights.kernel_shape), start.weights.has_bias)
            keeper.check_put(start.name, config, channels, start.expected_digest)
            held = keeper.holds(start.expected_digest)
            context.send_initial_metadata(((WEIGHTS, HELD if held else WANTED),))
            first = next(request_iterator, None)
            if held and first is None:
                stored, existed = keeper.name(start.expected_digest, start.name), True
            else:
                pieces = itertools.chain(() if first is None else (first,), request_iterator)
                layer = Layer(config, *_received(start.weights, config.filters, pieces))
                stored, existed = keeper.put(layer, start.name, start.expected_digest)
        else:
            keeper.check_put(start.name, config, start.input_channels, start.expected_digest)
            _no_more(request_iterator)
            stored, existed = keeper.draw_and_put(config, start.input_channels, start.name, start.expected_digest)
        return messages.PutLayerResponse(layer=_stored_message(stored), existed=existed)

    def GetLayer(self, request: messages.GetLayerRequest, context: grpc.ServicerContext) -> messages.GetLayerResponse:
        return messages.GetLayerResponse(layer=_stored_message(self._keeper.describe(_reference(request.layer))))

    def ListLayers(
        self, request: messages.ListLayersRequest, context: grpc.ServicerContext
    ) -> messages.ListLayersResponse:
        if request.page_size < 0:
            raise _refusal("page_size", "a number of at least 0", str(request.page_size))
        try:
            after = bytes.fromhex(request.page_token)
        except ValueError:
            after = b""
        if after.hex() != request.page_token or len(after) not in (0, 32):
            raise _refusal("page_token", "a token that this server gave", shown(request.page_token))
        size = min(request.page_size or 100, _MOST_LAYERS_A_PAGE)
        found = self._keeper.page(request.name_prefix, after, size + 1)
        token = found[size - 1].digest.hex() if len(found) > size else ""
        return messages.ListLayersResponse(layers=map(_stored_message, found[:size]), next_page_token=token)

    def FindMissingLayers(
        self, request: messages.FindMissingLayersRequest, context: grpc.ServicerContext
    ) -> messages.FindMissingLayersResponse:
        if len(request.digests) > _MOST_DIGESTS:
            raise _refusal("digests", f"at most {_MOST_DIGESTS} digests", str(len(request.digests)))
        for digest in request.digests:
            _checked_digest(digest)
        return messages.FindMissingLayersResponse(missing_digests=self._keeper.missing(request.digests))

    def DeleteLayer(
        self, request: messages.DeleteLayerRequest, context: grpc.ServicerContext
    ) -> messages.DeleteLayerResponse:
        self._keeper.delete(_reference(request.layer))
        return messages.DeleteLayerResponse()

    def UpdateWeights(
        self, request_iterator: Iterator[messages.UpdateWeightsRequest], context: grpc.ServicerContext
    ) -> messages.UpdateWeightsResponse:
        keeper = self._keeper
        start = _start(request_iterator)
        reference = _reference(start.layer)
        config = keeper.describe(reference).config
        check_weight_shapes(config, tuple(start.weights.kernel_shape), start.weights.has_bias)
        keeper.check_put("", config, start.weights.kernel_shape[2] * config.groups, b"")
        context.send_initial_metadata(((WEIGHTS, WANTED),))
        stored, losses = keeper.update(reference, *_received(start.weights, config.filters, request_iterator))
        return messages.UpdateWeightsResponse(layer=_stored_message(stored), losses=losses.to_message())

    def ReadWeights(
        self, request: messages.ReadWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.ReadWeightsResponse]:
        layer = self._keeper.layer(_reference(request.layer))
        assert layer.kernel is not None  # noqa: S101 (the store takes no layer without)
        header = messages.WeightsHeader(
            dtype=dtype_number(layer.kernel.dtype.name),
            kernel_shape=layer.kernel.shape,
            has_bias=layer.bias is not None,
        )
        yield messages.ReadWeightsResponse(start=header)
        for weight in (layer.kernel, layer.bias):
            if weight is not None:
                elements = weight.reshape(-1).view("u1")
                for begin in range(0, elements.size, _PIECE_BYTES):
                    yield messages.ReadWeightsResponse(piece=elements[begin : begin + _PIECE_BYTES].tobytes())


def _start(requests: Iterator[Any]) -> Any:
    """Returns the start of a stream, which must come first."""
    first = next(requests, None)
    if first is None or first.WhichOneof("message") != "start":
        raise _refusal("start", "a start as the first message", "none" if first is None else "a piece")
    return first.start


def _no_more(requests: Iterator[Any]) -> None:
    if next(requests, None) is not None:
        raise _refusal("piece", "no pieces, as the start announces no weights", "one")


def _received(header: messages.WeightsHeader, filters: int, requests: Iterator[Any]) -> tuple[Array, Array | None]:
    """Returns kernel and bias, put together from the pieces of a stream into memory of the size that was announced."""
    try:
        dtype = dtype_name(header.dtype, "kernel", FLOAT_DTYPES)
        shape = checked_shape(header.kernel_shape, "kernel")
    except InvalidTensorError as error:
        raise InvalidWeightsError(*error.violations) from None
    kernel_bytes = math.prod(shape) * itemsize(dtype)
    total = kernel_bytes + (filters * itemsize(dtype) if header.has_bias else 0)
    buffer = np.empty(total, np.uint8)
    position = 0
    for request in requests:
        if request.WhichOneof("message") != "piece":
            raise _refusal("piece", "a piece after the start", "another message")
        end = position + len(request.piece)
        if end > total:
            raise _refusal("piece", f"{total} bytes of weights, as the start announced", f"at least {end} bytes")
        buffer[position:end] = np.frombuffer(request.piece, np.uint8)
        position = end
    if position != total:
        raise _refusal("piece", f"{total} bytes of weights, as the start announced", f"{position} bytes")
    kernel = buffer[:kernel_bytes].view(numpy_dtype(dtype)).reshape(shape)
    return kernel, buffer[kernel_bytes:].view(numpy_dtype(dtype)) if header.has_bias else None


def _reference(message: messages.StoredLayerReference) -> Reference:
    kind = message.WhichOneof("layer")
    if kind == "digest":
        return _checked_digest(message.digest)
    if kind == "name":
        return message.name
    raise _refusal("layer", "a digest or a name", "neither")


def _checked_digest(digest: bytes) -> bytes:
    if len(digest) != 32:
        raise _refusal("digest", "a digest of 32 bytes", f"{len(digest)} bytes")
    return digest


def _stored_message(stored: StoredLayer) -> layer_pb2.StoredLayer:
    return layer_pb2.StoredLayer(
        digest=stored.digest,
        names=stored.names,
        conv2d=conv2d_message.to_message(stored.config),
        kernel_shape=stored.kernel_shape,
        parameter_count=stored.parameter_count,
        weight_bytes=stored.weight_bytes,
    )


def _refusal(field: str, expected: str, received: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, f"Expected {expected}. Received {received}."))
