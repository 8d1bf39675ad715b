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
from convserve.errors import ConvserveError
from convserve.protocol.results import Result, Timing, check_answer, check_size, reading_answers
from convserve.protocol.status import from_item_error
from convserve.tensors import framing
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import Array, head_of, numpy_dtype
from convserve.tensors.pieces import ACCEPTED, PIECE_BYTES, cut
from convserve.v1 import convolution_service_pb2 as messages

_ITEM_BYTES = 2**25  # of input or output, whichever is more


class Stream:
    """One attempt of a request: the messages that it sends, and the result of those that come back."""

    wanted = ACCEPTED  # the metadata with which a server asks for the messages after `start`

    def __init__(self, request: ConvolveRequest) -> None:
        """Divides the batch into items: of a few MiB each, and at most as many samples as the request says."""
        self._request = request
        self._plan = request.plan
        samples = request.input.shape[0]
        together = max(1, _ITEM_BYTES // (max(request.input.nbytes, request.plan.output_bytes) // samples))
        together = min(together, request.most_samples) if request.is_divisible else samples
        request.together = together
        # The rows of the batch that go in each item.
        self.items = [slice(begin, min(begin + together, samples)) for begin in range(0, samples, together)]
        start = messages.StreamStart(
            layers=request.message.layers,
            output_dtype=request.message.output_dtype,
            unbatched=request.message.unbatched,
            piece_bytes=PIECE_BYTES,
            expected_bytes=request.input.nbytes + request.plan.output_bytes,
        )
        self.start = messages.ConvolveStreamRequest(start=start).SerializeToString()
        self._output: Array | None = None
        self._results: list[Result] = []
        self._rest: Array = np.empty(0, np.uint8)

    def pieces(self) -> Iterator[bytes]:
        """Yields the messages after the first."""
        for number, rows in enumerate(self.items):
            part = self._request.input[rows]
            head = head_of(part)
            item = messages.StreamItem(item_id=number, dtype=head.dtype, shape=head.shape)
            yield messages.ConvolveStreamRequest(item=item).SerializeToString()
            for piece in cut(part, PIECE_BYTES):
                yield framing.write_piece(b"", piece)

    def take(self, data: bytes) -> None:
        """Takes the bytes of a message that came.

        Raises ConvserveError if it says that an item failed, or is none that could come now.
        """
        if (error := self._take(data)) is not None:
            try:
                raise error
            finally:
                del error  # whose frames, with the input, this one would keep: it is one of them

    @reading_answers
    def _take(self, data: bytes) -> ConvserveError | None:
        """Takes a message; returns the error of an item that failed."""
        framed = framing.read_piece(data)
        check_size(len(data if framed is None else framed[0]), self._plan, PIECE_BYTES)
        message = messages.ConvolveStreamResponse.FromString(data if framed is None else framed[0])
        if framed is None and message.WhichOneof("message") != "piece":
            return self._begin(message)
        piece = memoryview(message.piece) if framed is None else framed[1]
        if message.item_id != len(self._results) - 1 or len(piece) > len(self._rest):
            raise DecodeError("a piece that was not announced")
        self._rest[: len(piece)] = np.frombuffer(piece, np.uint8)
        self._rest = self._rest[len(piece) :]
        return None

    def _begin(self, message: messages.ConvolveStreamResponse) -> ConvserveError | None:
        if message.WhichOneof("message") == "error":
            check_size(message.error.ByteSize(), self._plan)
            return from_item_error(message.error)
        rows = self.items[message.item_id : message.item_id + 1]
        if len(self._rest) or message.item_id != len(self._results) or not rows:
            raise DecodeError("an item out of turn")
        head, plan = message.result.output, self._plan
        shape = (rows[0].stop - rows[0].start, *plan.output_shape[1:])
        check_answer(message.result, replace(plan, output_shape=shape), tuple(head.shape), head.dtype)
        if self._output is None:  # which no server computes, there may be no memory for
            out = self._request.out
            self._output = aligned_empty(plan.output_shape, numpy_dtype(plan.output_dtype)) if out is None else out
        output = np.asarray(self._output)[rows[0]]
        self._results.append(Result.from_message(message.result, output))
        self._rest = output.reshape(-1).view(np.uint8)
        return None

    @reading_answers
    def result(self) -> Result:
        """Returns the result after the last message; raises InternalError if something is missing."""
        if self._output is None or len(self._results) != len(self.items) or len(self._rest):
            raise DecodeError("a stream that ended early")
        times = [result.timing for result in self._results]
        return replace(
            self._results[0],
            output=self._output,
            timing=Timing(max(timing.queue_us for timing in times), sum(timing.compute_us for timing in times)),
            batch_size=max(result.batch_size for result in self._results),
            warm=all(result.warm for result in self._results),
        )
