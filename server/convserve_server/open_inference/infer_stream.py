"""ModelStreamInfer: one request after the other, of which the next are read and computed while one is answered."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

from convserve_server.caller import Caller
from convserve_server.item_under_way import ItemUnderWay
from convserve_server.open_inference.wire import InferRequest, InferResponse

_MOST_UNDER_WAY = 4


@dataclass(frozen=True)
class InferWork:
    """What a stream does with its requests; nothing in it knows of streams.

    Attributes:
        infer: Computes a request.
        waiting: A context for waiting for the caller, which ends the stream if that takes too long, unless it is told
            that it is not the caller who is waited for.
        idle_s: How long is too long.
    """

    infer: Callable[[InferRequest, Caller], InferResponse]
    waiting: Callable[[Callable[[], bool]], AbstractContextManager[None]]
    idle_s: float


Answer = tuple[str, Future[InferResponse]]
"""A request's id, and its response."""


class InferStream:
    """One stream's requests, read by a thread of its own and answered in order by the one that asks for answers."""

    def __init__(self, work: InferWork, requests: Iterator[InferRequest], caller: Caller, pool: Executor) -> None:
        """Prepares to answer."""
        self._work = work
        self._requests = requests
        self._caller = caller
        self._pool = pool
        self._room = threading.Semaphore(_MOST_UNDER_WAY)
        # In the order of the requests; None after the last, or what ends the stream.
        self._answers: queue.SimpleQueue[tuple[ItemUnderWay, Answer] | Exception | None] = queue.SimpleQueue()
        self._under_way: set[ItemUnderWay] = set()
        self._answered = time.monotonic()
        self._ended = False

    def answers(self) -> Iterator[Answer]:
        """Yields the answers. One counts as fetched when the next is asked for.

        Raises:
            InvalidRequestError: If what comes is no request.
        """
        self._caller.when_gone(self._end)  # at once, whatever this thread waits for
        threading.Thread(target=self._read, name="inference-stream", daemon=True).start()
        try:
            while (found := self._answers.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                item, answer = found
                del found
                yield answer
                del answer  # and with it the output, before the wait for the next one
                self._leave(item)
                self._room.release()
        finally:
            self._end()
            self._room.release()

    def _read(self) -> None:
        try:
            while (request := self._next()) is not None:
                self._room.acquire()
                item = ItemUnderWay(self._caller)
                self._under_way.add(item)
                if self._ended:
                    self._leave(item)
                    break
                response = self._pool.submit(self._work.infer, request, item.caller())
                self._answers.put((item, (request.message.id, response)))
                del request, response
            self._answers.put(None)
        except Exception as error:
            self._answers.put(error.with_traceback(None) if self._ended else error)

    def _next(self) -> InferRequest | None:
        """Returns the next request; None after the last. While nothing is under way, it is waited for so long only."""
        # What is under way may be what the caller waits for before it sends more.
        with self._work.waiting(lambda: bool(self._under_way) or time.monotonic() < self._answered + self._work.idle_s):
            return next(self._requests, None)

    def _end(self) -> None:
        """Ends all requests: their caller is gone, or has all answers."""
        self._ended = True
        for item in tuple(self._under_way):
            self._leave(item)

    def _leave(self, item: ItemUnderWay) -> None:
        self._answered = time.monotonic()
        self._under_way.discard(item)
        item.leave()
