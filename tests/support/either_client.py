"""Both clients with one face, so that a test body is written once: AsyncClient and its layers, awaited."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import convserve
from convserve._async.stored_layer import AsyncStoredLayer


class Awaited:
    """A client or a stored layer of asyncio, whose calls wait for their answer."""

    def __init__(self, wrapped: Any, runner: asyncio.Runner) -> None:
        self._wrapped = wrapped
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        return self._waiting(value) if inspect.iscoroutinefunction(value) else value

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._waiting(self._wrapped)(*arguments, **options)

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()

    def _waiting(self, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            async def answer() -> Any:
                named = {name: _unwrapped(value) for name, value in options.items()}
                return await function(*map(_unwrapped, arguments), **named)

            return self._face(self._runner.run(answer()))

        return call

    def _face(self, answer: Any) -> Any:
        if isinstance(answer, list | tuple):
            return type(answer)(map(self._face, answer))
        return Awaited(answer, self._runner) if isinstance(answer, AsyncStoredLayer) else answer


def _unwrapped(value: Any) -> Any:
    if isinstance(value, list):
        return [_unwrapped(each) for each in value]
    return value._wrapped if isinstance(value, Awaited) else value


def awaited_client(*arguments: Any, **options: Any) -> Awaited:
    """Returns an AsyncClient that is used like a Client."""
    return Awaited(convserve.AsyncClient(*arguments, **options), asyncio.Runner())


EITHER_CLIENT = {"blocking": convserve.Client, "awaited": awaited_client}
