"""`AsyncClient.map`: one task reads inputs, a few others make the calls, the caller's takes outputs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any

from convserve._async.connection import Connection
from convserve._rpc import retries
from convserve._rpc.map_items import Item, split
from convserve._rpc.map_schedule import MAX_CALLS, Pipeline
from convserve.tensors.codec import Array


async def outputs(
    connection: Connection, pipeline: Pipeline, inputs: Iterable[Any] | AsyncIterable[Any], timeout: float | None
) -> AsyncGenerator[Any, None]:
    """Yields what comes out of a pipeline; its tasks end with the generator."""
    senders = _Senders(connection, pipeline, timeout)
    try:
        senders.start(senders.read(_inputs_in_turn(inputs)))
        while await senders.has_output():
            # No name here holds what is yielded, so that it lasts no longer than its receiver wants.
            yield senders.take_output()
    finally:
        await senders.stop()


async def _inputs_in_turn(inputs: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Yields inputs of either kind; after one that came without waiting, others of the event loop have their turn."""
    if isinstance(inputs, AsyncIterable):
        async for x in inputs:
            yield x
    else:
        for x in inputs:
            yield x
            await asyncio.sleep(0)


class _Senders:
    """The tasks of one pipeline."""

    def __init__(self, connection: Connection, pipeline: Pipeline, timeout: float | None) -> None:
        self._connection, self._pipeline, self._timeout = connection, pipeline, timeout
        self._rule = retries.with_retries(connection._retry)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = 0
        self._stopped = False

    def start(self, work: Any) -> None:
        """Begins a task, which `stop` ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:  # else the caller would wait for ever for what this task had taken
            self._pipeline.fail(error)
            self._changed.set()

    async def stop(self) -> None:
        """Ends all tasks."""
        self._stopped = True
        ending = list(self._tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def read(self, inputs: AsyncGenerator[Any, None]) -> None:
        """Reads inputs while they fit in."""
        end: BaseException | None = None
        try:
            async with contextlib.aclosing(inputs):
                while True:
                    await self._until(lambda: self._pipeline.wants_input)
                    self._pipeline.add(self._pipeline.item(await anext(inputs)))
                    self._go_on()
        except StopAsyncIteration:
            pass
        except (Exception, asyncio.CancelledError) as error:  # raised when all before it has been yielded
            if self._stopped:
                raise
            end = error  # of CancelledError, what the reader waited for was cancelled, not this task
        self._pipeline.end(end)
        self._go_on()

    async def has_output(self) -> bool:
        """Waits until there is an output to be taken; returns False at the end."""
        await self._until(lambda: self._pipeline.has_output or self._pipeline.is_over)
        return self._pipeline.has_output

    def take_output(self) -> Any:
        """Returns what is to be yielded, or raises what is to be raised."""
        try:
            return self._pipeline.take_output()
        finally:
            self._go_on()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _go_on(self) -> None:
        """Begins further calls, and lets those that wait look again."""
        while self._calls < MAX_CALLS and (items := self._pipeline.next_call()):
            self._calls += 1
            self.start(self._send(items))
        self._changed.set()

    async def _send(self, items: list[Item]) -> None:
        outcome: list[Array] | Exception
        try:
            request, deadline = self._pipeline.request(items), self._connection._deadline(self._timeout, self._rule)
            outcome = split((await self._connection._convolve(request, deadline)).output, items)
        except Exception as error:
            outcome = error
        self._pipeline.finish(items, outcome)
        self._calls -= 1
        self._go_on()
