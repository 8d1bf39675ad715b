"""Calls that others end, by closing their client, wherever each of them is at that moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convserve import AsyncClient, Client, Conv2D, InvalidRequestError, Layer
from convserve.protocol.layer_messages import SEND_WEIGHTS, WEIGHTS
from convserve.tensors.pieces import ACCEPTED
from tests.support.servers.lying_server import CONVOLUTION, LAYERS, lying_server

HOUR = 3_600  # which whoever runs this test would notice
LAYER = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 1, 1), "f4"))
IMAGE, LARGE = np.ones((1, 4, 4, 1), "f4"), np.ones((1, 1024, 1024, 1), "f4")
CALLS: dict[str, Callable[[Any], Any]] = {
    "convolve": lambda client: client.convolve(LAYER, IMAGE),
    "stream": lambda client: client.convolve(LAYER, LARGE),
    "put": lambda client: client.put(LAYER),
    "layers": lambda client: client.layers(),
    "map": lambda client: (anext if isinstance(client, AsyncClient) else next)(client.map(LAYER, [IMAGE])),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
CLOSED = pytest.raises(InvalidRequestError, match=r"an open client\. Received a call after it was closed")


class HangingServer:
    """Takes what its callers send, and answers none.

    Attributes:
        target: Its address.
        called: Set once a call has come.
    """

    def __init__(self) -> None:
        self.target = ""
        self.called = threading.Event()

    def hang(self, _: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Waits until the call has ended."""
        ended = threading.Event()
        context.send_initial_metadata((ACCEPTED, (WEIGHTS, SEND_WEIGHTS)))
        self.called.set()
        if context.add_callback(ended.set):
            ended.wait()
        yield b""


@pytest.fixture
def hanging() -> Iterator[HangingServer]:
    made = HangingServer()
    with lying_server() as server:
        for method in (f"{CONVOLUTION}Convolve", f"{CONVOLUTION}ConvolveStream"):
            server.let(method, made.hang)
        for method in ("PutLayer", "ListLayers"):
            server.let(LAYERS + method, made.hang)
        made.target = server.target
        yield made


@EVERY_CALL
def test_a_call_of_a_task_whose_client_another_one_closes_says_so(hanging: HangingServer, call: Any) -> None:
    async def run() -> None:
        client = AsyncClient(hanging.target, timeout=HOUR, shared_memory=False)
        task = asyncio.ensure_future(call(client))
        assert await asyncio.to_thread(hanging.called.wait, 60)
        await client.close()
        with CLOSED:
            await task

    asyncio.run(run())


@EVERY_CALL
def test_a_task_that_is_cancelled_is_cancelled_though_its_client_is_closed(hanging: HangingServer, call: Any) -> None:
    async def run() -> None:
        client = AsyncClient(hanging.target, timeout=HOUR, shared_memory=False)
        task = asyncio.ensure_future(call(client))
        assert await asyncio.to_thread(hanging.called.wait, 60)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@EVERY_CALL
def test_a_call_of_a_thread_whose_client_another_one_closes_says_so(hanging: HangingServer, call: Any) -> None:
    with ThreadPoolExecutor(1) as pool, Client(hanging.target, timeout=HOUR, shared_memory=False) as client:
        outcome = pool.submit(call, client)
        assert hanging.called.wait(60)
        client.close()
        with CLOSED:
            outcome.result(60)
