"""ConvolveStream: many inputs for the same layers, each received in pieces, computed while the next one arrives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from convserve.errors import InvalidRequestError
from convserve.layers import messages as conv2d_message
from convserve.layers.layer import Layer
from convserve.protocol.status import to_item_error
from convserve.tensors import framing
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import FLOAT_DTYPES, Array, checked_shape, dtype_name, head_of, numpy_dtype
from convserve.tensors.pieces import PIECE_BYTES, cut
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.backend import Backend
from convserve_server.observability.call_record import CallRecord
from convserve_server.scheduling.admission_queue import Permit
from convserve_server.scheduling.caller import Caller
from convserve_server.scheduling.scheduler import Result
from convserve_server.scheduling.transfers import Transfer
from convserve_server.transport.call_errors import to_convserve_error
from convserve_server.transport.in_flight_items import InFlightItems, Item

_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 2**14, 2**24

Request = messages.ConvolveStreamRequest | memoryview
"""A message of a stream: one of the contract's, or a piece's bytes."""
StreamItems = InFlightItems[Request, int, tuple[Result, Permit]]
"""The items that come after a stream's start, by their ids."""


def parse(data: bytes) -> Request:
    """Returns what a message's bytes say, a piece's without copying it."""
    piece = framing.read_piece(data)
    if piece is not None and not piece[0]:
        return piece[1]
    message = messages.ConvolveStreamRequest.FromString(data)
    return memoryview(message.piece) if message.WhichOneof("message") == "piece" else message


@dataclass
class ConvolveStream:
    """One stream: `_read` receives and submits its items, `answers` yields what comes of them."""

    backend: Backend
    layers: Sequence[Layer]
    start: messages.StreamStart
    items: StreamItems  # those that come after the start
    call: CallRecord  # the stream's, which other threads cannot find by themselves
    max_items: int

    def __post_init__(self) -> None:
        """Checks the start."""
        self._output_dtype = output_dtype(self.start.output_dtype)
        self._transfer = Transfer(self.backend.admission.transfers, self.items.caller, self.start.expected_bytes)
        self._piece_bytes = min(max(self.start.piece_bytes or PIECE_BYTES, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)

    def answers(self) -> Iterator[bytes]:
        """Yields the messages of the answer. Raises InvalidRequestError if the caller's messages are out of order."""
        try:
            with closing(self.items.results(self._read)) as results:
                for item_id, result in results:
                    yield from self._messages(item_id, result)
                    del result  # and with it the output, before the wait for the next one
        finally:
            self._transfer.ended()

    def _messages(self, item_id: int, result: Future[tuple[Result, Permit]]) -> Iterator[bytes]:
        try:
            computed, permit = result.result()
        except Exception as error:
            del result  # which has the error, in whose traceback this frame is
            answer = to_convserve_error(error, self.call)
            self.call.refused(answer, item=True)
            failure = to_item_error(answer)
            del answer
            yield messages.ConvolveStreamResponse(item_id=item_id, error=failure).SerializeToString()
            return
        response, output = response_without_output(computed), computed.output
        response.output.CopyFrom(head_of(output))
        head = messages.ConvolveStreamResponse(item_id=item_id).SerializeToString()
        permit.awaits_pieces(self.items.cancel)
        yield messages.ConvolveStreamResponse(item_id=item_id, result=response).SerializeToString()
        for piece in cut(output, self._piece_bytes):
            yield framing.write_piece(head, piece)  # until it is sent
            self._transfer.moved(len(piece))

    def _read(self) -> None:
        ids: set[int] = set()
        taken = False
        while (request := self.items.next_message()) is not None:
            if isinstance(request, memoryview):
                # What is left of an item that was refused is passed over, and so is what adds nothing to one.
                if ids and not (taken and len(request)):
                    continue
                raise InvalidRequestError.for_field("message", "an item", "a piece")
            if request.WhichOneof("message") != "item":
                raise InvalidRequestError.for_field("message", "an item", request.WhichOneof("message") or "nothing")
            head = request.item
            if head.item_id in ids:
                raise InvalidRequestError.for_field("message", "an item_id that is new in the stream", head.item_id)
            if len(ids) == self.max_items:
                raise InvalidRequestError.for_field(
                    "message", f"at most {self.max_items} items, the server's --max-items-per-stream", "more"
                )
            ids.add(head.item_id)
            taken = self._take(head, self.items.begin(head.item_id))

    def _take(self, head: messages.StreamItem, item: Item[int, tuple[Result, Permit]]) -> bool:
        """Receives an item's pieces and submits it, unless it is refused. Returns whether it was taken."""
        caller = item.caller()
        with ExitStack() as unless_submitted:
            try:
                dtype, shape = dtype_name(head.dtype, "input"), checked_shape(head.shape, "input")
                permit = self.backend.admission.admit(
                    self.layers, shape, dtype, self._output_dtype, caller, claim=self._transfer.claim
                )
                unless_submitted.enter_context(permit)
                x = aligned_empty(shape, numpy_dtype(dtype))
            except Exception as error:
                item.fail(error)
                return False
            permit.awaits_pieces(self.items.cancel)
            self._receive(x.reshape(-1).view(np.uint8))
            permit.received()
            item.submit(self._convolve, x, permit, caller)
            unless_submitted.pop_all()
        return True

    def _receive(self, buffer: Array) -> None:
        while len(buffer):
            piece = self.items.next_message(of_item=True)
            if not isinstance(piece, memoryview) or len(piece) > len(buffer):
                received = "the stream's end" if piece is None else "another message, or a longer piece"
                raise InvalidRequestError.for_field("message", f"{len(buffer)} more bytes of an item", received)
            buffer[: len(piece)] = np.frombuffer(piece, np.uint8)
            self._transfer.moved(len(piece))
            buffer = buffer[len(piece) :]

    def _convolve(self, x: Array, permit: Permit, caller: Caller) -> tuple[Result, Permit]:
        with self._transfer.computed():
            result = self.backend.scheduler.convolve(permit, self.layers, x, caller, unbatched=self.start.unbatched)
        self.call.computed(result.computation)
        return result, permit


def output_dtype(number: int) -> str | None:
    """Returns the dtype that a request asks for; None for the last layer's own."""
    return dtype_name(number, "output_dtype", FLOAT_DTYPES) if number else None


def response_without_output(result: Result) -> messages.ConvolveResponse:
    """Returns the message that says what was computed, without the output."""
    computation = result.computation
    return messages.ConvolveResponse(
        layers=[
            messages.LayerOutcome(
                conv2d=None if config is None else conv2d_message.to_message(config), losses=losses.to_message()
            )
            for config, losses in zip(result.layers, result.losses, strict=True)
        ],
        timing=messages.Timing(queue_us=computation.queue_us, compute_us=computation.compute_us),
        batch_size=computation.batch_size,
        device=computation.device,
        warm=computation.warm,
    )
