"""`map` and the lives of servers: they die under it, and it goes on."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from convserve import AsyncClient, Client, Conv2D, Layer, RetryRule
from tests.support.servers.server_process import numpy_server

LAYER = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 1), 2, "f4"))
IMAGES = [np.full((40, 40, 1), number, "f4") for number in range(200)]
IN_FLIGHT_BYTES = 2**18  # a few calls
QUICK = RetryRule(longest_s=1)


def test_an_asynchronous_pipeline_outlives_a_server_too(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/socket"

    async def run() -> list[float]:
        with ExitStack() as servers:
            server = servers.enter_context(numpy_server("--listen", address))
            async with AsyncClient(address, timeout=120, retry=QUICK, shared_memory=False) as client:
                layer = await client.put(LAYER)
                found = []
                async for y in client.map(layer, IMAGES, max_bytes=IN_FLIGHT_BYTES):
                    found.append(float(y[0, 0, 0]))
                    if len(found) == 50:
                        server.process.kill()
                        server.process.wait()
                        again = numpy_server("--listen", address)
                        starting = asyncio.create_task(asyncio.to_thread(servers.enter_context, again))
                await starting
                return found

    assert asyncio.run(run()) == [2.0 * number for number in range(200)]


def test_of_several_servers_one_is_enough() -> None:
    with numpy_server() as first, numpy_server() as second, Client([first.target, second.target]) as client:
        found = []
        for y in client.map(client.put(LAYER), IMAGES, max_bytes=IN_FLIGHT_BYTES):
            found.append(float(y[0, 0, 0]))
            if len(found) == 50:
                first.process.kill()
                first.process.wait()
    assert found == [2.0 * number for number in range(200)]
