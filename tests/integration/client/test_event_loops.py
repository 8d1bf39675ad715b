"""AsyncClient and the event loops of a program: one after the other, never two at once."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from convserve import AsyncClient, AsyncStoredLayer, Conv2D, InvalidRequestError
from tests.support.servers.server_process import RunningServer

IMAGE = np.ones((1, 5, 5, 1), "f4")
LAYER = Conv2D(1, 3, kernel_initializer="ones")


async def computes(client: AsyncClient) -> bool:
    return bool(((await client.convolve(LAYER, IMAGE)).output == 9).all())


def test_a_client_and_its_layers_go_on_in_another_event_loop(server: RunningServer) -> None:
    client = AsyncClient(server.target)

    async def put() -> AsyncStoredLayer:
        assert await computes(client)
        return await client.put(LAYER, input_channels=1)

    async def many(layer: AsyncStoredLayer) -> bool:
        return all((y == 9).all() for y in await asyncio.gather(*(layer(IMAGE) for _ in range(8))))

    async def delete(layer: AsyncStoredLayer) -> None:
        await client.delete(layer)
        assert await many(layer)  # by giving it again

    layer = asyncio.run(put())
    assert asyncio.run(many(layer))
    asyncio.run(delete(layer))
    asyncio.run(client.close())


def test_two_event_loops_at_once_are_refused(server: RunningServer) -> None:
    client, calling, stopped = AsyncClient(server.target), threading.Event(), threading.Event()

    async def call() -> None:
        assert await computes(client)
        calling.set()
        await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=asyncio.run, args=(call(),))
    thread.start()
    try:
        assert calling.wait(60)
        for use in (computes(client), client.close()):
            with pytest.raises(InvalidRequestError, match="client: Expected one event loop at a time"):
                asyncio.run(use)
    finally:
        stopped.set()
        thread.join()
    assert asyncio.run(computes(client))
    asyncio.run(client.close())
