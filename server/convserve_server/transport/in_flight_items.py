"""The items of a stream: a bounded executor that one thread submits to, and whose results another yields.

reader's thread:  message -> begin (waits for room) -> submit --> pool's threads: compute
|
handler's thread: answer <-- results, in order or as completed <-----------+
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, Generic, TypeVar

from convserve_server.scheduling.caller import Caller
from convserve_server.transport.idle_timeouts import IdleTimeouts, Wait

MAX_IN_FLIGHT = 4
"""Items of one stream that are begun and not yet answered."""

Message = TypeVar("Message")
Key = TypeVar("Key")
Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable[..., Any])


def reads_items(method: Method) -> Method:
    """Marks a method that reads its stream by `InFlightItems`, which know when they wait for its caller alone."""
    marked: Any = method
    marked.reads_items = True
    return method


class InFlightItems(Generic[Message, Key, Result]):
    """The items of one stream."""

    def __init__(
        self,
        messages: Iterator[Message],
        caller: Caller,
        pool: Executor,
        idle: IdleTimeouts,
        cancel: Callable[[], object],
        *,
        in_order: bool = True,
    ) -> None:
        """Prepares to read a stream's messages in a thread of the pool, which also computes the items.

        `cancel` ends the stream if its caller is idle for too long. Results come in the order of their items, or as
        they are completed.
        """
        self.caller, self.pool, self.cancel, self.lock = caller, pool, cancel, threading.Lock()
        self._messages, self._idle, self._in_order = messages, idle, in_order
        self._room = threading.Semaphore(MAX_IN_FLIGHT)
        self._in_flight: set[Item[Key, Result]] = set()
        self._begun = 0
        self._last_finished = time.monotonic()
        self._ended = self._closed = False
        # Items with their results; when all is read, the number of items, or what ended the reading.
        self._queue: queue.SimpleQueue[tuple[Item[Key, Result], Future[Result]] | int | Exception] = queue.SimpleQueue()

    def results(self, read: Callable[[], None]) -> Generator[tuple[Key, Future[Result]], None, None]:
        """Yields the keys of items and their results. One is answered when the next is asked for.

        A thread of the pool calls `read`, which is to read all messages, and begin and submit items. Raises what that
        raises, or OverloadedError if there is no thread.
        """
        self.caller.add_done_callback(self._end)  # at once, whatever this thread waits for
        entry: Any = None
        answered, total = 0, -1
        try:
            self.pool.submit(self._read, read)
            while answered != total:
                entry = self._queue.get()
                if isinstance(entry, int):
                    total = entry
                    continue
                if isinstance(entry, Exception):
                    raise entry
                item, result = entry
                del entry
                yield item.key, result
                del result  # and with it the output, before the wait for the next one
                item.finish()
                answered += 1
                self._room.release()
        finally:
            # Of what is not answered any more nothing is kept: errors and their tracebacks would keep each other.
            entry = None
            self._end()
            with self.lock:
                self._closed = True
                while not self._queue.empty():
                    self._queue.get()
            self._room.release()  # for a reader that waits

    def next_message(self, *, of_item: bool = False) -> Message | None:
        """Returns the next message; None after the last.

        A caller is idle only while nothing is in flight, unless what is in flight cannot go on without the message.
        """
        wait = Wait(self.cancel if of_item else self._cancel_if_idle, self._idle.deadline())
        self._idle.add(wait)
        try:
            return next(self._messages, None)
        finally:
            self._idle.remove(wait)

    def begin(self, key: Key) -> Item[Key, Result]:
        """Returns an item, once there is room for it. Raises CancelledError if nobody waits for answers any more."""
        self._room.acquire()
        item = Item(key, self)
        with self.lock:
            if self._ended:
                self._room.release()  # for whoever asks again
                raise CancelledError
            self._in_flight.add(item)
            self._begun += 1
        return item

    def answer(self, item: Item[Key, Result], result: Future[Result]) -> None:
        """Has an item's result yielded."""
        if self._in_order:
            self._put((item, result))
        else:
            result.add_done_callback(lambda done: self._put((item, done)))

    def finished(self, item: Item[Key, Result]) -> None:
        """Notes, with the lock held, that nobody waits for an item."""
        self._last_finished = time.monotonic()
        self._in_flight.discard(item)

    def _cancel_if_idle(self) -> None:
        # What is in flight may be what the caller waits for before it sends more.
        with self.lock:
            is_idle = not self._in_flight and time.monotonic() >= self._last_finished + self._idle.limit_s
        if is_idle:
            self.cancel()

    def _put(self, entry: tuple[Item[Key, Result], Future[Result]] | int | Exception) -> None:
        with self.lock:
            if not self._closed:
                self._queue.put(entry)

    def _read(self, read: Callable[[], None]) -> None:
        try:
            read()
            self._put(self._begun)
        except Exception as error:
            self._put(error.with_traceback(None) if self._ended else error)

    def _end(self) -> None:
        """Ends all items: their caller is gone, or has all answers."""
        with self.lock:
            self._ended = True
            items = tuple(self._in_flight)
        for item in items:
            item.finish()


class Item(Generic[Key, Result]):
    """An item in flight: until it is answered, or its stream ends, its caller waits for it."""

    def __init__(self, key: Key, items: InFlightItems[Any, Key, Result]) -> None:
        self.key, self._items = key, items
        self._is_finished = False
        self._callbacks: list[Callable[[], None]] = []

    def caller(self) -> Caller:
        """Returns the item's caller. It refers to the item, so the item does not keep it."""
        return self._items.caller._replace(
            is_active=self._is_active, add_done_callback=self._add_done_callback, cancel=None
        )

    def submit(self, fn: Callable[..., Result], *args: Any) -> None:
        """Has the pool compute the item as `fn(*args)`; raises an OverloadedError if it has no thread."""
        self._items.answer(self, self._items.pool.submit(fn, *args))

    def fail(self, error: Exception) -> None:
        """Has the item answered with an error; the stream goes on."""
        result: Future[Result] = Future()
        result.set_exception(error)
        self._items.answer(self, result)

    def finish(self) -> None:
        """Notes that it is answered, or that nobody waits for it any more."""
        with self._items.lock:
            self._is_finished = True
            callbacks, self._callbacks = self._callbacks, []
            self._items.finished(self)
        for callback in callbacks:
            callback()

    def _is_active(self) -> bool:
        return not self._is_finished and self._items.caller.is_active()

    def _add_done_callback(self, callback: Callable[[], None]) -> bool:
        with self._items.lock:
            if not self._is_finished:
                self._callbacks.append(callback)
            return not self._is_finished
