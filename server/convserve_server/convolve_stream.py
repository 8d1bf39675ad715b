"""ConvolveStream: many inputs for the same layers, each received in pieces, computed while the next one arrives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np

from convserve import ConvserveError, InvalidRequestError, frame
from convserve.errors import FieldViolation
from convserve.status import to_item_error
from convserve.stream import PIECE_BYTES, cut
from convserve.tensor import Array, Shape, checked_shape, dtype_name, numpy_dtype
from convserve.v1 import convolution_service_pb2 as messages
from convserve_server.aligned import aligned_empty
from convserve_server.caller import Caller
from convserve_server.item_under_way import ItemUnderWay
from convserve_server.waiting_room import Ticket

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
        admit: Gives an input of some shape and dtype its ticket, before there is memory for it, or raises.
        convolve: Computes an item, and lets go of its ticket.
        as_error: Turns any exception into the one to answer with.
        waiting: A context for waiting for the caller, which ends the stream if that takes too long, unless it is told
            that it is not the caller who is waited for.
        idle_s: How long is too long.
        most_items: How many items a stream may have.
    """

    admit: Callable[[Shape, str, Caller], Ticket]
    convolve: Callable[[Array, Ticket, Caller], Answer]
    as_error: Callable[[Exception], ConvserveError]
    waiting: Callable[[Callable[[], bool]], AbstractContextManager[None]]
    idle_s: float
    most_items: int


class ConvolveStream:
    """One stream's items, read by a thread of its own and answered by the one that asks for answers."""

    def __init__(
        self, work: Work, requests: Iterator[Request], start: messages.StreamStart, caller: Caller, pool: Executor
    ) -> None:
        """Prepares to answer what comes after the start."""
        self._work = work
        self._requests = requests
        self._caller = caller
        self._pool = pool
        self._in_order = start.order != messages.RESULT_ORDER_AS_COMPLETED
        wished = start.piece_bytes or PIECE_BYTES
        self._piece_bytes = min(max(wished, _SMALLEST_PIECE_BYTES), _LARGEST_PIECE_BYTES)
        self._room = threading.Semaphore(_MOST_ITEMS_UNDER_WAY)
        # Items in the order in which they are answered; None after the last, or what ends the stream.
        self._answers: queue.SimpleQueue[tuple[int, ItemUnderWay, Future[Answer]] | Exception | None] = (
            queue.SimpleQueue()
        )
        self._under_way: set[ItemUnderWay] = set()
        self._answered = time.monotonic()
        self._lock = threading.Lock()
        self._ended = self._closed = False

    def answers(self) -> Iterator[bytes]:
        """Yields the messages of the answer.

        Raises:
            InvalidRequestError: If the caller's messages are out of order.
        """
        self._caller.when_gone(self._leave_all)  # at once, whatever this thread waits for
        threading.Thread(target=self._read, name="stream", daemon=True).start()
        try:
            while (answer := self._answers.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                yield from self._messages(answer[0], answer[2])
                self._leave(answer[1])
                del answer  # and with it the output, before the wait for the next one
                self._room.release()
        finally:
            # Of what is not answered any more nothing is kept: errors and their tracebacks would keep each other.
            answer = None
            self._leave_all()
            with self._lock:
                self._closed = True
                while not self._answers.empty():
                    self._answers.get()
            self._room.release()

    def _put(self, answer: tuple[int, ItemUnderWay, Future[Answer]] | Exception | None) -> None:
        with self._lock:
            if not self._closed:
                self._answers.put(answer)

    def _leave_all(self) -> None:
        """Ends all items: their caller is gone."""
        self._ended = True
        for item in tuple(self._under_way):
            self._leave(item)

    def _leave(self, item: ItemUnderWay) -> None:
        self._answered = time.monotonic()
        self._under_way.discard(item)
        item.leave()

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
            yield frame.write_piece(head, piece)

    def _read(self) -> None:
        try:
            known: set[int] = set()
            taken = False
            while (request := self._next()) is not None:
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
                    raise _out_of_order(
                        f"at most {self._work.most_items} items, the server's --max-items-per-stream", "more"
                    )
                known.add(request.item.item_id)
                self._room.acquire()
                if self._ended:
                    break
                taken = self._take(request.item)
            else:
                self._wait_for_last()
            self._put(None)  # also when the caller is gone: the thread that answers may be waiting for more
        except Exception as error:
            self._put(error.with_traceback(None) if self._ended else error)

    def _next(self) -> Request | None:
        """Returns the next message; None after the last. While nothing is under way, it is waited for so long only."""
        # What is under way may be what the caller waits for before it sends more.
        with self._work.waiting(lambda: bool(self._under_way) or time.monotonic() < self._answered + self._work.idle_s):
            return next(self._requests, None)

    def _take(self, item: messages.StreamItem) -> bool:
        """Receives an item's pieces and has it computed, unless it is refused. Returns whether it was taken."""
        under_way = ItemUnderWay(self._caller)
        self._under_way.add(under_way)
        if self._ended:  # before the one that ended it saw this item
            self._leave(under_way)
        try:
            ticket, x = self._room_for(item, under_way.caller())
        except Exception as error:
            answer: Future[Answer] = Future()
            answer.set_exception(error)
            taken = False
        else:
            with ExitStack() as unless_submitted:
                unless_submitted.callback(ticket.let_go)
                self._receive(x.reshape(-1).view(np.uint8))
                answer = self._pool.submit(self._work.convolve, x, ticket, under_way.caller())
                unless_submitted.pop_all()
            taken = True
        if self._in_order:
            self._put((item.item_id, under_way, answer))
        else:
            answer.add_done_callback(lambda done: self._put((item.item_id, under_way, done)))
        del answer  # else a refusal's traceback, in which this frame is, and it would keep each other
        return taken

    def _room_for(self, item: messages.StreamItem, caller: Caller) -> tuple[Ticket, Array]:
        """Returns an item's ticket and memory for its elements, if this server takes it."""
        dtype = dtype_name(item.dtype, "input")
        shape = checked_shape(item.shape, "input")
        ticket = self._work.admit(shape, dtype, caller)
        with ExitStack() as unless_made:
            unless_made.callback(ticket.let_go)
            memory = aligned_empty(shape, numpy_dtype(dtype))
            unless_made.pop_all()
        return ticket, memory

    def _receive(self, buffer: Array) -> None:
        while len(buffer):
            with self._work.waiting(_never):
                piece = next(self._requests, None)
            if not isinstance(piece, memoryview) or len(piece) > len(buffer):
                received = "the stream's end" if piece is None else "another message, or a longer piece"
                raise _out_of_order(f"{len(buffer)} more bytes of an item", received)
            buffer[: len(piece)] = np.frombuffer(piece, np.uint8)
            buffer = buffer[len(piece) :]

    def _wait_for_last(self) -> None:
        """Waits until every item has its answer, or the stream is ended."""
        for _ in range(_MOST_ITEMS_UNDER_WAY):
            self._room.acquire()
            if self._ended:
                return


def _never() -> bool:
    return False


def _out_of_order(expected: str, received: str | None) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("message", f"Expected {expected}. Received {received or 'nothing'}."))
