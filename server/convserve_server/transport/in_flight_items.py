"""The items of a stream: a thread reads them and has them computed, while another answers them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

from convserve_server.scheduling.caller import Caller
from convserve_server.transport.idle_timeouts import IdleTimeouts

MAX_UNDER_WAY = 4
"""Items of one stream that are read and not yet answered."""

Message = TypeVar("Message")
Answer = TypeVar("Answer")


class ItemUnderWay:
    """An item under way: until it is answered, or its stream ends, its caller waits."""

    def __init__(self, stream: Caller) -> None:
        """Begins an item of a stream's caller."""
        self._stream = stream
        self._lock = threading.Lock()
        self._gone = False
        self._calls: list[Callable[[], None]] = []

    def caller(self) -> Caller:
        """Returns the item's caller. It refers to the item, so the item does not keep it."""
        return self._stream._replace(is_active=self._is_waiting, add_done_callback=self._when_gone)

    def _is_waiting(self) -> bool:
        return not self._gone and self._stream.is_active()

    def _when_gone(self, call: Callable[[], None]) -> bool:
        with self._lock:
            if not self._gone:
                self._calls.append(call)
            return not self._gone

    def leave(self) -> None:
        """Notes that it is answered, or that nobody waits for it any more."""
        with self._lock:
            self._gone = True
            calls, self._calls = self._calls, []
        for call in calls:
            call()


class InFlightItems(Generic[Message, Answer]):
    """The items of one stream that are under way. A thread begins and puts them; another yields their answers."""

    def __init__(
        self, messages: Iterator[Message], caller: Caller, silence: IdleTimeouts, cancel: Callable[[], object]
    ) -> None:
        """Prepares to read a caller's messages; a caller that is silent for too long has its stream cancelled."""
        self._messages = messages
        self._caller = caller
        self._silence = silence
        self._cancel = cancel
        self._room = threading.Semaphore(MAX_UNDER_WAY)
        # In the order in which they are answered; None after the last, or what ends the stream.
        self._answers: queue.SimpleQueue[tuple[ItemUnderWay, Answer] | Exception | None] = queue.SimpleQueue()
        self._under_way: set[ItemUnderWay] = set()
        self._answered = time.monotonic()
        self._lock = threading.Lock()
        self._ended = self._closed = False

    def answers(self, read: Callable[[], None]) -> Generator[Answer, None, None]:
        """Yields what is put, as long as `read` runs, in a thread of its own, and until all that it began is answered.

        An item is answered when the next one is asked for.

        Raises:
            Exception: What `read` raises.
        """
        self._caller.add_done_callback(self._end)  # at once, whatever this thread waits for
        threading.Thread(target=self._read, args=(read,), name="stream", daemon=True).start()
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
            # Of what is not answered any more nothing is kept: errors and their tracebacks would keep each other.
            found = None
            self._end()
            with self._lock:
                self._closed = True
                while not self._answers.empty():
                    self._answers.get()
            self._room.release()

    def next_message(self) -> Message | None:
        """Returns the next message; None after the last. While nothing is under way, it is waited for so long only."""
        with self._silence.waiting(self._cancel_if_idle):
            return next(self._messages, None)

    def rest_of_item(self) -> Message | None:
        """Returns the next message, without which what is under way cannot go on; None after the last."""
        with self._silence.waiting(self._cancel):
            return next(self._messages, None)

    def begin(self) -> ItemUnderWay | None:
        """Begins an item when there is room for one; returns None if nobody waits for it any more."""
        self._room.acquire()
        item = ItemUnderWay(self._caller)
        self._under_way.add(item)
        if self._ended:  # before the one that ended it saw this item
            self._leave(item)
            return None
        return item

    def put(self, item: ItemUnderWay, answer: Answer) -> None:
        """Has an item answered after those that were put before it."""
        self._put((item, answer))

    def _cancel_if_idle(self) -> None:
        # What is under way may be what the caller waits for before it sends more.
        if not self._under_way and time.monotonic() >= self._answered + self._silence.limit_s:
            self._cancel()

    def _put(self, found: tuple[ItemUnderWay, Answer] | Exception | None) -> None:
        with self._lock:
            if not self._closed:
                self._answers.put(found)

    def _read(self, read: Callable[[], None]) -> None:
        try:
            read()
            for _ in range(MAX_UNDER_WAY):
                if self._ended:
                    break
                self._room.acquire()  # until all are answered
            self._put(None)  # also when the caller is gone: the thread that answers may be waiting for more
        except Exception as error:
            self._put(error.with_traceback(None) if self._ended else error)

    def _end(self) -> None:
        """Ends all items: their caller is gone, or has all answers."""
        self._ended = True
        for item in tuple(self._under_way):
            self._leave(item)

    def _leave(self, item: ItemUnderWay) -> None:
        self._answered = time.monotonic()
        self._under_way.discard(item)
        item.leave()
