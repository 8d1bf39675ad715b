"""`Client.map`: the caller's thread reads inputs and takes outputs, a few others make the calls between."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from convserve._rpc import retries
from convserve._rpc.map_items import split
from convserve._rpc.map_schedule import MAX_CALLS, Pipeline
from convserve._sync.connection import Connection
from convserve._sync.io import Calls
from convserve.errors import InvalidRequestError
from convserve.tensors.codec import Array


def outputs(
    connection: Connection, pipeline: Pipeline, inputs: Iterable[Any], timeout: float | None
) -> Generator[Any, None, None]:
    """Returns a generator of what comes out of a pipeline; its threads end with the generator."""
    return _outputs(_Senders(connection, pipeline, timeout), iter(inputs))


def _outputs(senders: _Senders, inputs: Iterator[Any]) -> Generator[Any, None, None]:
    try:
        while senders.read_until_output(inputs):
            # No name here holds what is yielded, so that it lasts no longer than its receiver wants.
            yield senders.take_output()
    finally:
        senders.stop()


class _Senders:
    """The threads of one pipeline, started as there is work for them."""

    def __init__(self, connection: Connection, pipeline: Pipeline, timeout: float | None) -> None:
        self._connection, self._pipeline, self._timeout = connection, pipeline, timeout
        self._rule = retries.with_retries(connection._retry)
        self._calls = Calls()
        # One that its holder may take again: the garbage collector may close a generator in any thread, at any time.
        self._lock = threading.RLock()
        self._work, self._came = threading.Condition(self._lock), threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopped = False
        self._process = os.getpid()

    def read_until_output(self, inputs: Iterator[Any]) -> bool:
        """Reads inputs while they fit in; returns True if there is an output to be taken, False at the end.

        One is read for each output that is taken: so the servers are kept at work, and an output that is there waits
        for one further input at most.
        """
        if self._process != os.getpid():
            received = "another one, forked from it: call map there"
            raise InvalidRequestError.for_field("map", "the process that began with it", received)
        has_read = False
        pipeline = self._pipeline
        while True:
            with self._lock:
                while not (pipeline.wants_input or pipeline.has_output or pipeline.is_over):
                    self._came.wait()
                if pipeline.has_output and (has_read or not pipeline.wants_input):
                    return True
                if pipeline.is_over:
                    return False
            self._read(inputs)
            has_read = True

    def _read(self, inputs: Iterator[Any]) -> None:
        # In the thread that takes outputs: another one could not be ended while it waits for an input.
        end: Exception | None = None
        try:
            item = self._pipeline.item(next(inputs))
        except StopIteration:
            item = None
        except Exception as error:  # raised when all before it has been yielded
            item, end = None, error
        with self._lock:
            if item is None:
                self._pipeline.end(end)
            else:
                self._pipeline.add(item)
            self._set_to_work()

    def take_output(self) -> Any:
        """Returns what is to be yielded, or raises what is to be raised."""
        with self._lock:
            try:
                return self._pipeline.take_output()
            finally:
                self._set_to_work()

    def stop(self) -> None:
        """Ends all calls and threads."""
        if self._process != os.getpid():
            return  # they are the parent's
        with self._lock:
            self._stopped = True
            self._work.notify_all()
        self._calls.end()
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join()

    def _set_to_work(self) -> None:
        """Lets one more thread take a call, if there is one; under the lock."""
        if not self._pipeline.has_work or self._stopped:
            return
        if self._idle:
            self._work.notify()
        elif len(self._threads) < MAX_CALLS:
            # A daemon, so that a program may end in the middle.
            thread = threading.Thread(target=self._send, name=f"convserve-map-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _send(self) -> None:
        self._calls.take_this_thread()
        try:
            while self._send_one():
                pass  # nothing of the call before is held here
        except BaseException as error:  # else the caller would wait for ever for what this thread had taken
            with self._lock:
                self._pipeline.fail(error)
                self._came.notify()

    def _send_one(self) -> bool:
        """Makes the next call, waiting for it if need be; returns False at the end."""
        with self._lock:
            while not (items := self._pipeline.next_call()):
                if self._stopped:
                    return False
                self._idle += 1
                self._work.wait()
                self._idle -= 1
            self._set_to_work()  # there may be more than this
        outcome: list[Array] | Exception
        try:
            request, deadline = self._pipeline.request(items), self._connection._deadline(self._timeout, self._rule)
            outcome = split(self._connection._convolve(request, deadline).output, items)
        except Exception as error:
            outcome = error
        try:
            with self._lock:
                if self._stopped:
                    return False
                self._pipeline.finish(items, outcome)
                self._came.notify()
        finally:
            # An error holds this frame. A call that was ended would be left to the garbage collector, in the end to
            # that of an interpreter that shuts down, where it may wait for ever for a lock of gRPC's threads.
            del outcome
        return True
