"""ConvolveStream: many inputs for the same layers, each received in pieces, computed while the next one arrives."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np

from convserve import ConvserveError, InvalidRequestError, frame
from convserve.errors import FieldViolation
from convserve.status import to_item_error
from convserve.stream import PIECE_BYTES, cut
from convserve.tensor import Array, Shape, checked_shape, dtype_name, itemsize, numpy_dtype
from convserve.v1 import convolution_service_pb2 as messages

_MOST_ITEMS_UNDER_WAY = 4
_SMALLEST_PIECE_BYTES, _LARGEST_PIECE_BYTES = 2**14, 2**24
_ALIGNMENT = 64  # of memory on which TensorFlow computes without a copy of its own

Request = messages.ConvolveStreamRequest | memoryview
"""A message of a stream: one of the contract's, or a piece's bytes."""
Answer = tuple[messages.ConvolveResponse, Array]
"""An item's response without its output, and the output."""


def parse(data: bytes) -> Request:
    """Returns what a message's bytes say, a piece's without copying it."""
    found = frame.read_piece(data)
    return messages.ConvolveStreamRequest.FromString(data) if found is None else found[1]


@dataclass(frozen=True)
class Work:
    """What a stream does with its items; nothing in it knows of streams.

    Attributes:
        admit: Refuses an input's shape and dtype by raising, before there is memory for it.
        convolve: Computes an item.
        as_error: Turns any exception into the one to answer with.
    """

    admit: Callable[[Shape, str], None]
    convolve: Callable[[Array], Answer]
    as_error: Callable[[Exception], ConvserveError]


class ConvolveStream:
    """One stream's items, read by a thread of its own and answered by the one that asks for answers."""

    def __init__(self, work: Work, requests: Iterator[Request], start: messages.StreamStart, pool: Executor) -> None:
        """Prepares to answer what comes after the start."""
        self._work = work
        self._requests = requests
        self._pool = pool
        self._in_order = start.order != messages.RESULT_ORDER_AS_COMPLETED
        wished = start.piece_bytes or PIECE_BYTES
        self._piece_bytes = min(max(wished, _SMALLEST_PIECE_BYTES), _LARGEST_PIECE_BYTES)
        self._room = threading.Semaphore(_MOST_ITEMS_UNDER_WAY)
        # Items in the order in which they are answered; None after the last, or what ends the stream.
        self._answers: queue.SimpleQueue[tuple[int, Future[Answer]] | Exception | None] = queue.SimpleQueue()
        self._ended = False

    def answers(self) -> Iterator[bytes]:
        """Yields the messages of the answer.

        Raises:
            InvalidRequestError: If the caller's messages are out of order.
        """
        threading.Thread(target=self._read, name="stream", daemon=True).start()
        try:
            while (answer := self._answers.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                yield from self._messages(*answer)
                del answer  # and with it the output, before the wait for the next one
                self._room.release()
        finally:
            self._ended = True
            self._room.release()

    def _messages(self, item_id: int, answer: Future[Answer]) -> Iterator[bytes]:
        try:
            result, output = answer.result()
        except Exception as error:
            failure = to_item_error(self._work.as_error(error))
            yield messages.ConvolveStreamResponse(item_id=item_id, error=failure).SerializeToString()
            return
        head = messages.ConvolveStreamResponse(item_id=item_id).SerializeToString()
        yield messages.ConvolveStreamResponse(item_id=item_id, result=result).SerializeToString()
        for piece in cut(output, self._piece_bytes):
            yield frame.write_piece(head, piece)

    def _read(self) -> None:
        try:
            known: set[int] = set()
            for request in self._requests:
                kind = "piece" if isinstance(request, memoryview) else request.WhichOneof("message")
                if isinstance(request, memoryview) or kind != "item":
                    raise _out_of_order("an item", kind)
                if request.item.item_id in known:
                    raise _out_of_order("an item_id that is new in the stream", str(request.item.item_id))
                known.add(request.item.item_id)
                self._room.acquire()
                if self._ended:
                    return
                self._take(request.item)
            self._finish_last()
        except Exception as error:
            self._answers.put(error)

    def _take(self, item: messages.StreamItem) -> None:
        """Receives an item's pieces and has it computed. A refused one's pieces are passed over."""
        future: Future[Answer] = Future()
        buffer = None
        try:
            dtype = dtype_name(item.dtype, "input")
            shape = checked_shape(item.shape, "input")
            size = math.prod(shape) * itemsize(dtype)
            self._work.admit(shape, dtype)
            buffer = _aligned(size)
        except ConvserveError as error:
            future.set_exception(error)
            size = math.prod(max(0, each) for each in item.shape) * _item_bytes(item.dtype)
        self._receive(size, buffer)
        if buffer is not None:
            x = buffer.view(numpy_dtype(dtype)).reshape(shape)
            future = self._pool.submit(self._work.convolve, x)
        if self._in_order:
            self._answers.put((item.item_id, future))
        else:
            future.add_done_callback(lambda done: self._answers.put((item.item_id, done)))

    def _receive(self, size: int, buffer: Array | None) -> None:
        position = 0
        while position < size:
            request = next(self._requests, None)
            piece = request if isinstance(request, memoryview) else None
            if isinstance(request, messages.ConvolveStreamRequest) and request.WhichOneof("message") == "piece":
                piece = memoryview(request.piece)
            if piece is None or position + len(piece) > size:
                received = "the stream's end" if request is None else "another message, or a longer piece"
                raise _out_of_order(f"{size - position} more bytes of an item", received)
            if buffer is not None:
                buffer[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
            position += len(piece)

    def _finish_last(self) -> None:
        """Ends the answers when every item has its own."""
        for _ in range(_MOST_ITEMS_UNDER_WAY):
            self._room.acquire()
            if self._ended:
                return
        self._answers.put(None)


def _item_bytes(dtype: int) -> int:
    try:
        return itemsize(dtype_name(dtype, "input"))
    except ConvserveError as error:
        raise InvalidRequestError(*getattr(error, "violations", ())) from None


def _aligned(size: int) -> Array:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size]


def _out_of_order(expected: str, received: str | None) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("message", f"Expected {expected}. Received {received or 'nothing'}."))
