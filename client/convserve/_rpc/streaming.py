"""A forward pass as a stream: the batch in items, each item in pieces, so that no tensor is ever one message.

Items are computed while further ones are on their way, and neither end holds more of a large batch than a few of them.
Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from google.protobuf.message import DecodeError

from convserve._rpc.requests import ConvolveRequest
from convserve.protocol.pieces import PIECE_BYTES, cut
from convserve.protocol.results import Result, Timing, reading_answers
from convserve.protocol.status import from_item_error
from convserve.tensors import framing
from convserve.tensors.codec import Array, dtype_number, numpy_dtype
from convserve.v1 import convolution_service_pb2 as messages

_ITEM_BYTES = 2**25  # of input or output, whichever is more


class Outgoing:
    """What a request sends."""

    def __init__(self, request: ConvolveRequest) -> None:
        """Divides a request's batch into items, where that changes no result."""
        self._request = request
        self.samples = request.input.shape[0]
        sample_bytes = max(request.input.nbytes, request.plan.output_bytes) // self.samples
        together = max(1, _ITEM_BYTES // sample_bytes) if _is_divisible(request) else self.samples
        self.items = [slice(begin, min(begin + together, self.samples)) for begin in range(0, self.samples, together)]

    def start(self) -> bytes:
        """Returns the first message."""
        message = self._request.message
        start = messages.StreamStart(
            layers=message.layers,
            output_dtype=message.output_dtype,
            unbatched=message.unbatched,
            piece_bytes=PIECE_BYTES,
        )
        return messages.ConvolveStreamRequest(start=start).SerializeToString()

    def pieces(self) -> Iterator[bytes]:
        """Yields the further messages."""
        dtype = dtype_number(self._request.input.dtype.name)
        for number, rows in enumerate(self.items):
            part = self._request.input[rows]
            item = messages.StreamItem(item_id=number, dtype=dtype, shape=part.shape)
            yield messages.ConvolveStreamRequest(item=item).SerializeToString()
            for piece in cut(part, PIECE_BYTES):
                yield framing.write_piece(b"", piece)


class Incoming:
    """What a request gets back, put together."""

    def __init__(self, outgoing: Outgoing, request: ConvolveRequest) -> None:
        """Prepares to receive the output."""
        self._plan = request.plan
        self._items = outgoing.items
        self._output: Array | None = None
        self._results: list[Result] = []
        self._rest: Array = np.empty(0, np.uint8)

    @reading_answers()
    def take(self, data: bytes) -> None:
        """Takes a message's bytes.

        Raises:
            ConvserveError: If it says that an item failed, or is none that could come now.
        """
        piece = framing.read_piece(data)
        message = messages.ConvolveStreamResponse.FromString(data if piece is None else piece[0])
        if piece is not None:
            self._continue(message.item_id, piece[1])
        elif message.WhichOneof("message") == "piece":
            self._continue(message.item_id, memoryview(message.piece))
        else:
            self._begin(message)

    def _continue(self, item_id: int, piece: memoryview) -> None:
        if item_id != len(self._results) - 1 or len(piece) > len(self._rest):
            raise DecodeError("a piece that was not announced")
        self._rest[: len(piece)] = np.frombuffer(piece, np.uint8)
        self._rest = self._rest[len(piece) :]

    def _begin(self, message: messages.ConvolveStreamResponse) -> None:
        if message.WhichOneof("message") == "error":
            raise from_item_error(message.error)
        rows = self._items[message.item_id : message.item_id + 1]
        if len(self._rest) or message.item_id != len(self._results) or not rows:
            raise DecodeError("an item out of turn")
        if self._output is None:  # which no server computes, there may be no memory for
            self._output = np.empty(self._plan.output_shape, numpy_dtype(self._plan.output_dtype))
        output = self._output[rows[0]]
        head = message.result.output
        if tuple(head.shape) != output.shape or head.dtype != dtype_number(self._plan.output_dtype):
            raise DecodeError("an output of another shape or dtype than planned")
        self._results.append(Result.from_message(message.result, output))
        self._rest = output.reshape(-1).view(np.uint8)

    @reading_answers()
    def result(self) -> Result:
        """Returns the result after the last message.

        Raises:
            InternalError: If something is missing.
        """
        if self._output is None or len(self._results) != len(self._items) or len(self._rest):
            raise DecodeError("a stream that ended early")
        times = [result.timing for result in self._results]
        return replace(
            self._results[0],
            output=self._output,
            timing=Timing(max(timing.queue_us for timing in times), sum(timing.compute_us for timing in times)),
            batch_size=max(result.batch_size for result in self._results),
            warm=all(result.warm for result in self._results),
        )


def _is_divisible(request: ConvolveRequest) -> bool:
    """Returns whether each sample's result is the same whatever it is computed with: all but a batch's own penalty."""
    return not any(layer.config.activity_regularizer for layer in request.layers)
