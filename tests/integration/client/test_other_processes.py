"""Clients and layers in worker processes, to which they are sent as values."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from convserve import AsyncClient, AsyncStoredLayer, Client, Conv2D, InvalidWeightsError, Layer
from tests.support.servers.server_process import RunningServer, numpy_server

LAYER = Layer(Conv2D(4, 3, activation="tanh", data_format="channels_last"), np.ones((3, 3, 2, 4), "f4"), np.ones(4))
INPUTS = [np.full((1, 6, 6, 2), number, "f4") for number in range(4)]


@pytest.fixture(scope="module")
def numpys() -> Iterator[RunningServer]:
    with numpy_server() as running:
        yield running


@pytest.mark.parametrize("shared_memory", [False, True])
def test_spawned_workers_call_a_stored_layer_and_a_client(numpys: RunningServer, shared_memory: bool) -> None:
    context = multiprocessing.get_context("spawn")
    with Client(numpys.target, shared_memory=shared_memory) as client, ProcessPoolExecutor(1, context) as pool:
        layer = client.put(LAYER)
        outputs = list(pool.map(layer, INPUTS))
        result = pool.submit(client.convolve, LAYER, INPUTS[1]).result(60)
        with pytest.raises(InvalidWeightsError, match=r"takes, 2\. Received 3 "):
            pool.submit(layer, np.zeros((1, 6, 6, 3), "f4")).result(60)
        for x, y in zip(INPUTS, outputs, strict=True):
            np.testing.assert_array_equal(y, layer(x))
        np.testing.assert_array_equal(result.output, outputs[1])
        assert result.layers == (None,)


def called_in_a_loop(layer: AsyncStoredLayer, x: Any) -> Any:
    return asyncio.run(layer(x))


def test_a_spawned_worker_calls_a_stored_layer_of_asyncio(numpys: RunningServer) -> None:
    """In a loop of its own, while the client it comes from is connected in this one."""

    async def sent(pool: ProcessPoolExecutor) -> tuple[Any, Any]:
        async with AsyncClient(numpys.target) as client:
            layer = await client.put(LAYER)
            there = asyncio.get_running_loop().run_in_executor(pool, called_in_a_loop, layer, INPUTS[1])
            return await there, await layer(INPUTS[1])

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(*asyncio.run(sent(pool)))
