"""ConvolveStream: many inputs for the same layers, each received in pieces, computed while the next one arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from convserve.errors import ConvserveError, FieldViolation, InvalidRequestError
from convserve.protocol.pieces import PIECE_BYTES, cut
from convserve.protocol.status import to_item_error
from convserve.tensors import framing
from convserve.tensors.codec import Array, Shape, checked_shape, dtype_name, numpy_dtype
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.memory.aligned import aligned_empty
from convserve_server.scheduling.admission_queue import Permit
from convserve_server.scheduling.caller import Caller
from convserve_server.transport.in_flight_items import InFlightItems, ItemUnderWay

_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 2**14, 2**24

Request = messages.ConvolveStreamRequest | memoryview
"""A message of a stream: one of the contract's, or a piece's bytes."""
Answer = tuple[messages.ConvolveResponse, Array]
"""An item's response without its output, and the output."""
StreamItems = InFlightItems[Request, tuple[int, Future[Answer]]]
"""The items that come after a stream's start, with their ids and answers."""


def parse(data: bytes) -> Request:
    """Returns what a message's bytes say, a piece's without copying it."""
    found = framing.read_piece(data)
    if found is not None and not found[0]:
        return found[1]
    message = messages.ConvolveStreamRequest.FromString(data)
    return memoryview(message.piece) if message.WhichOneof("message") == "piece" else message


@dataclass(frozen=True)
class Work:
    """What a stream does with its items; nothing in it knows of streams.

    Attributes:
        admit: Gives an input of some shape and dtype its permit, before there is memory for it, or raises.
        convolve: Computes an item, and lets go of its permit.
        as_error: Turns any exception into the one to answer with.
        most_items: How many items a stream may have.
    """

    admit: Callable[[Shape, str, Caller], Permit]
    convolve: Callable[[Array, Permit, Caller], Answer]
    as_error: Callable[[Exception], ConvserveError]
    most_items: int


class ConvolveStream:
    """One stream's items, read by a thread of its own and answered by the one that asks for answers."""

    def __init__(self, work: Work, items: StreamItems, start: messages.StreamStart, pool: Executor) -> None:
        """Prepares to answer what comes after the start."""
        self._work = work
        self._pool = pool
        self._items = items
        self._in_order = start.order != messages.RESULT_ORDER_AS_COMPLETED
        wished = start.piece_bytes or PIECE_BYTES
        self._piece_bytes = min(max(wished, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)

    def answers(self) -> Iterator[bytes]:
        """Yields the messages of the answer.

        Raises:
            InvalidRequestError: If the caller's messages are out of order.
        """
        with closing(self._items.answers(self._read)) as answers:
            for item_id, answer in answers:
                yield from self._messages(item_id, answer)
                del answer  # and with it the output, before the wait for the next one

    def _messages(self, item_id: int, answer: Future[Answer]) -> Iterator[bytes]:
        try:
            result, output = answer.result()
        except Exception as error:
            del answer  # which has the error, in whose traceback this frame is
            failure = to_item_error(self._work.as_error(error))
            yield messages.ConvolveStreamResponse(item_id=item_id, error=failure).SerializeToString()
            return
        head = messages.ConvolveStreamResponse(item_id=item_id).SerializeToString()
        yield messages.ConvolveStreamResponse(item_id=item_id, result=result).SerializeToString()
        for piece in cut(output, self._piece_bytes):
            yield framing.write_piece(head, piece)

    def _read(self) -> None:
        known: set[int] = set()
        taken = False
        while (request := self._items.next_message()) is not None:
            if isinstance(request, memoryview):
                # What is left of an item that was refused is passed over, and so is what adds nothing to one.
                if known and not (taken and len(request)):
                    continue
                raise _out_of_order("an item", "a piece")
            if request.WhichOneof("message") != "item":
                raise _out_of_order("an item", request.WhichOneof("message"))
            if request.item.item_id in known:
                raise _out_of_order("an item_id that is new in the stream", str(request.item.item_id))
            if len(known) == self._work.most_items:
                most = f"at most {self._work.most_items} items, the server's --max-items-per-stream"
                raise _out_of_order(most, "more")
            known.add(request.item.item_id)
            item = self._items.begin()
            if item is None:
                return
            taken = self._take(request.item, item)

    def _take(self, item: messages.StreamItem, under_way: ItemUnderWay) -> bool:
        """Receives an item's pieces and has it computed, unless it is refused. Returns whether it was taken."""
        try:
            permit, x = self._room_for(item, under_way.caller())
        except Exception as error:
            answer: Future[Answer] = Future()
            answer.set_exception(error)
            taken = False
        else:
            with ExitStack() as unless_submitted:
                unless_submitted.callback(permit.release)
                self._receive(x.reshape(-1).view(np.uint8))
                answer = self._pool.submit(self._work.convolve, x, permit, under_way.caller())
                unless_submitted.pop_all()
            taken = True
        if self._in_order:
            self._items.put(under_way, (item.item_id, answer))
        else:
            answer.add_done_callback(lambda done: self._items.put(under_way, (item.item_id, done)))
        del answer  # else a refusal's traceback, in which this frame is, and it would keep each other
        return taken

    def _room_for(self, item: messages.StreamItem, caller: Caller) -> tuple[Permit, Array]:
        """Returns an item's permit and memory for its elements, if this server takes it."""
        dtype = dtype_name(item.dtype, "input")
        shape = checked_shape(item.shape, "input")
        permit = self._work.admit(shape, dtype, caller)
        with ExitStack() as unless_made:
            unless_made.callback(permit.release)
            memory = aligned_empty(shape, numpy_dtype(dtype))
            unless_made.pop_all()
        return permit, memory

    def _receive(self, buffer: Array) -> None:
        while len(buffer):
            piece = self._items.rest_of_item()
            if not isinstance(piece, memoryview) or len(piece) > len(buffer):
                received = "the stream's end" if piece is None else "another message, or a longer piece"
                raise _out_of_order(f"{len(buffer)} more bytes of an item", received)
            buffer[: len(piece)] = np.frombuffer(piece, np.uint8)
            buffer = buffer[len(piece) :]


def _out_of_order(expected: str, received: str | None) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("message", f"Expected {expected}. Received {received or 'nothing'}."))
