"""What a client makes of LayerService's longer answers, of which it keeps no more than they may have."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from convserve.layers.layer import Layer
from convserve.protocol.results import reading_answers
from convserve.protocol.stored_layers import StoredLayerBase, known_parts
from convserve.tensors.codec import dtype_number, numpy_dtype
from convserve.v1 import layer_service_pb2

_MAX_LISTED_BYTES = 2**26  # of messages; a layer with a name takes some 150


class ReceivedWeights:
    """A stored layer's weights as ReadWeights sends them: of the shapes that are known, and with its digest."""

    def __init__(self, stored: StoredLayerBase) -> None:
        self._stored, self._config = stored, stored.config
        self._dtype = numpy_dtype(self._config.variable_dtype)
        self._elements = int(np.prod(stored.kernel_shape, dtype=object))
        self._rest = (self._elements + (self._config.filters if self._config.use_bias else 0)) * self._dtype.itemsize
        self._pieces: list[bytes] = []
        self._is_announced = False

    @reading_answers
    def take(self, message: layer_service_pb2.ReadWeightsResponse) -> None:
        """Takes a message that came; raises InternalError for one with other weights than the layer has."""
        if message.WhichOneof("message") == "start":
            start, config = message.start, self._config
            announced = tuple(start.kernel_shape), start.has_bias, start.dtype
            if announced != (self._stored.kernel_shape, config.use_bias, dtype_number(config.variable_dtype)):
                raise DecodeError(f"weights of another shape or dtype than those of {self._stored.digest.hex()}")
            self._is_announced = True
            return
        self._rest -= len(message.piece)
        if not self._is_announced or self._rest < 0:
            raise DecodeError("weights that were not announced")
        self._pieces.append(message.piece)

    @reading_answers
    def result(self) -> Layer:
        """Returns the layer; raises InternalError if weights are missing, or are not those of the digest."""
        if not self._is_announced or self._rest:
            raise DecodeError("weights that ended early")
        elements = np.frombuffer(b"".join(self._pieces), self._dtype)
        kernel = elements[: self._elements].reshape(self._stored.kernel_shape)
        layer = Layer(self._config, kernel, elements[self._elements :] if self._config.use_bias else None)
        if layer.digest != self._stored.digest:
            raise DecodeError(f"other weights than those of {self._stored.digest.hex()}")
        return layer


class Listing:
    """A server's list of layers.

    Attributes:
        following: What asks for its next page.
        layers: The arguments of a StoredLayerBase for each layer of the pages that came.
        is_whole: Whether there is no further page.
    """

    def __init__(self, request: layer_service_pb2.ListLayersRequest) -> None:
        self.following = layer_service_pb2.ListLayersRequest()
        self.following.CopyFrom(request)
        self.layers: list[dict[str, Any]] = []
        self.is_whole = False
        self._left = _MAX_LISTED_BYTES

    @reading_answers
    def take(self, page: layer_service_pb2.ListLayersResponse) -> None:
        """Takes a page; raises InternalError if it does not go on from the one before, or they have no end."""
        digests = [*(parts["digest"] for parts in self.layers[-1:]), *(layer.digest for layer in page.layers)]
        if not all(before < after for before, after in itertools.pairwise(digests)):
            raise DecodeError("layers out of the order of their digests")
        if len(page.layers) > self.following.page_size or (page.next_page_token and not page.layers):
            raise DecodeError(f"a page of {len(page.layers)} layers where {self.following.page_size} were asked for")
        self._left -= page.ByteSize()
        if self._left < 0:
            raise DecodeError(f"more than {_MAX_LISTED_BYTES} bytes of layers: ask for those with a name prefix")
        self.layers += [known_parts(layer, None) for layer in page.layers]
        self.following.page_token = page.next_page_token
        self.is_whole = not page.next_page_token
