"""The threads of a blocking `map`, and the tasks of an awaited one: none of them ends without a word."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

import convserve
from convserve._rpc.map_schedule import Pipeline

LAYER = convserve.Conv2D(1, 1)
INPUTS = [np.zeros((1, 2, 2, 1), "f4")] * 3


def test_a_thread_that_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with convserve.Client() as client:
        outputs = client.map(convserve.Conv2D(1, 1), [np.zeros((1, 2, 2, 1), "f4")])
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            next(outputs)


def mapped() -> list[Any]:
    with convserve.Client("127.0.0.1:1", retry=convserve.RetryRule(attempts=1)) as client:
        return list(client.map(LAYER, INPUTS))


def mapped_awaited() -> list[Any]:
    async def outputs() -> list[Any]:
        async with convserve.AsyncClient("127.0.0.1:1", retry=convserve.RetryRule(attempts=1)) as client:
            return [each async for each in client.map(LAYER, INPUTS)]

    return asyncio.run(outputs())


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), asyncio.CancelledError(), GeneratorExit("odd")])
@pytest.mark.parametrize("where", ["next_call", "request", "finish"])
@pytest.mark.parametrize("outputs", [mapped, mapped_awaited])
def test_what_ends_one_of_those_that_send_ends_the_map(
    outputs: Any, where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Pipeline, where, fails)
    with pytest.raises(type(error)):
        outputs()
