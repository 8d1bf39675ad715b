"""Calls that end early, wherever each is at that moment: others close its client or end its `map`, or sending fails."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from convserve import (
    AsyncClient,
    Client,
    Conv2D,
    InvalidRequestError,
    Layer,
    LayerNotFoundError,
    RetryRule,
    StoredLayer,
)
from convserve._rpc.streaming import Stream
from convserve._sync import io
from convserve.protocol.layer_messages import SEND_WEIGHTS, WEIGHTS, Upload
from convserve.protocol.status import to_status
from convserve.tensors.pieces import ACCEPTED
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.lying_server import CONVOLUTION, LAYERS, lying_server
from tests.support.waiting import eventually

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
METHODS = ["PutLayer", "ListLayers", "ReadWeights"]
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
CLOSED = pytest.raises(InvalidRequestError, match=r"an open client\. Received a call after it was closed")


class HangingServer:
    """Takes what its callers send, and answers none.

    Attributes:
        target: Its address.
        called: Set once a call has come.
        is_empty: Whether it says of each convolution's layer that it has none.
    """

    def __init__(self) -> None:
        self.target = ""
        self.called = threading.Event()
        self.is_empty = False

    def convolve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Answers if it is empty."""
        if self.is_empty:
            context.abort_with_status(to_status(LayerNotFoundError("none", layer="x")))
        yield from self.hang(requests, context)

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
        server.let(f"{CONVOLUTION}Convolve", made.convolve)
        for method in (f"{CONVOLUTION}ConvolveStream", *(LAYERS + each for each in METHODS)):
            server.let(method, made.hang)
        made.target = server.target
        yield made


async def begun(hanging: HangingServer, call: Any) -> tuple[AsyncClient, asyncio.Future[Any]]:
    """Returns a client and a task of its call, which the server has got."""
    client = AsyncClient(hanging.target, timeout=HOUR, shared_memory=False)
    task = asyncio.ensure_future(call(client))
    assert await asyncio.to_thread(hanging.called.wait, 60)
    return client, task


@EVERY_CALL
def test_a_call_of_a_task_whose_client_another_one_closes_says_so(hanging: HangingServer, call: Any) -> None:
    async def run() -> None:
        client, task = await begun(hanging, call)
        await client.close()
        with CLOSED:
            await task

    asyncio.run(run())


@EVERY_CALL
def test_a_task_that_is_cancelled_is_cancelled_though_its_client_is_closed(hanging: HangingServer, call: Any) -> None:
    async def run() -> None:
        client, task = await begun(hanging, call)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@EVERY_CALL
@pytest.mark.parametrize("attempts", [1, 5])
def test_a_call_of_a_thread_whose_client_another_one_closes_says_so(
    hanging: HangingServer, call: Any, attempts: int
) -> None:
    settings: dict[str, Any] = {"timeout": HOUR, "shared_memory": False, "retry": RetryRule(attempts=attempts)}
    with ThreadPoolExecutor(1) as pool, Client(hanging.target, **settings) as client:
        outcome = pool.submit(call, client)
        assert hanging.called.wait(60)
        client.close()
        with CLOSED:
            outcome.result(60)


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
@pytest.mark.parametrize(("call", "sent"), [("put", Upload), ("stream", Stream)])
def test_a_call_whose_sending_fails_ends_with_what_failed(
    hanging: HangingServer, monkeypatch: pytest.MonkeyPatch, make_client: Any, call: str, sent: Any
) -> None:
    def pieces(_: Any) -> Iterator[bytes]:
        raise MemoryError("no room for a piece")

    monkeypatch.setattr(sent, "pieces", pieces)
    with (
        make_client(hanging.target, timeout=HOUR, shared_memory=False) as client,
        pytest.raises(MemoryError, match="no room for a piece"),
    ):
        CALLS[call](client)


def interrupted(client: Client, layer: Any, is_waiting: Callable[[], Any]) -> None:
    """Interrupts, as Ctrl-C does, the caller of a `map` once that waits for something."""

    def inputs() -> Iterator[Any]:
        yield IMAGE
        eventually(is_waiting)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(client.map(layer, inputs()))


def stored(client: Client, local: Layer | None = LAYER) -> StoredLayer:
    parts = {"digest": LAYER.digest, "config": LAYER.config, "kernel_shape": LAYER.kernel_shape}
    return StoredLayer(client, **parts, local=local)


@pytest.mark.parametrize("local", [LAYER, None], ids=["uploads", "reads"])
def test_a_map_that_is_interrupted_ends_while_it(hanging: HangingServer, local: Layer | None) -> None:
    hanging.is_empty = True
    with ThreadPoolExecutor(1) as pool, Client(hanging.target, timeout=HOUR) as client:
        pool.submit(interrupted, client, stored(client, local), hanging.called.is_set).result(60)


def test_a_map_that_is_interrupted_ends_while_another_caller_uploads(
    hanging: HangingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging.is_empty = True
    waiting = threading.Event()

    def held(*arguments: Any, held: Any = io.held) -> Any:
        waiting.set()
        return held(*arguments)

    with ThreadPoolExecutor(2) as pool, Client(hanging.target, timeout=HOUR) as client:
        layer = stored(client)
        uploading = pool.submit(client.convolve, layer, IMAGE)
        assert hanging.called.wait(60)
        monkeypatch.setattr(io, "held", held)
        pool.submit(interrupted, client, layer, waiting.is_set).result(60)
        assert not uploading.done()


def test_a_map_that_is_interrupted_ends_while_a_name_is_looked_up(
    hanging: HangingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging.is_empty = True
    asked, answers = threading.Event(), threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        asked.set()
        answers.wait()
        return []

    with ThreadPoolExecutor(1) as pool, Client(hanging.target, timeout=HOUR) as client:
        layer = stored(client)
        client._connected()._servers._target = "dns:///pods.test:1"
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        try:
            pool.submit(interrupted, client, layer, asked.is_set).result(60)
        finally:
            answers.set()
