"""ConvolveStream: many inputs for the same layers, each received in pieces, computed while the next one arrives."""

from __future__ import annotations

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
from convserve.tensor import Array, Shape, checked_shape, dtype_name, numpy_dtype
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.aligned import aligned_empty

_MOST_ITEMS_UNDER_WAY = 4
_SMALLEST_PIECE_BYTES, _LARGEST_PIECE_BYTES = 2**14, 2**24

Request = messages.ConvolveStreamRequest | memoryview
"""A message of a stream: one of the contract's, or a piece's bytes."""
Answer = tuple[messages.ConvolveResponse, Array]
"""An item's response without its output, and the output."""


def parse(data: bytes) -> Request:
    """Returns what a message's bytes say, a piece's without copying it."""
    found = frame.read_piece(data)
    if found is not None and not found[0]:
        return found[1]
    message = messages.ConvolveStreamRequest.FromString(data)
    return memoryview(message.piece) if message.WhichOneof("message") == "piece" else message


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
            taken = False
            for request in self._requests:
                if isinstance(request, memoryview):
                    # What is left of an item that was refused is passed over, and so is what adds nothing to one.
                    if known and not (taken and len(request)):
                        continue
                    raise _out_of_order("an item", "a piece")
                if request.WhichOneof("message") != "item":
                    raise _out_of_order("an item", request.WhichOneof("message"))
                if request.item.item_id in known:
                    raise _out_of_order("an item_id that is new in the stream", str(request.item.item_id))
                known.add(request.item.item_id)
                self._room.acquire()
                if self._ended:
                    return
                taken = self._take(request.item)
            self._finish_last()
        except Exception as error:
            self._answers.put(error)

    def _take(self, item: messages.StreamItem) -> bool:
        """Receives an item's pieces and has it computed, unless it is refused. Returns whether it was taken."""
        future: Future[Answer] = Future()
        x = None
        try:
            x = self._memory(item)
        except Exception as error:
            future.set_exception(error)
        else:
            self._receive(x.reshape(-1).view(np.uint8))
            future = self._pool.submit(self._work.convolve, x)
        if self._in_order:
            self._answers.put((item.item_id, future))
        else:
            future.add_done_callback(lambda done: self._answers.put((item.item_id, done)))
        return x is not None

    def _memory(self, item: messages.StreamItem) -> Array:
        """Returns memory for an item's elements, if this server takes it."""
        dtype = dtype_name(item.dtype, "input")
        shape = checked_shape(item.shape, "input")
        self._work.admit(shape, dtype)
        return aligned_empty(shape, numpy_dtype(dtype))

    def _receive(self, buffer: Array) -> None:
        while len(buffer):
            piece = next(self._requests, None)
            if not isinstance(piece, memoryview) or len(piece) > len(buffer):
                received = "the stream's end" if piece is None else "another message, or a longer piece"
                raise _out_of_order(f"{len(buffer)} more bytes of an item", received)
            buffer[: len(piece)] = np.frombuffer(piece, np.uint8)
            buffer = buffer[len(piece) :]

    def _finish_last(self) -> None:
        """Ends the answers when every item has its own."""
        for _ in range(_MOST_ITEMS_UNDER_WAY):
            self._room.acquire()
            if self._ended:
                return
        self._answers.put(None)


def _out_of_order(expected: str, received: str | None) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("message", f"Expected {expected}. Received {received or 'nothing'}."))
