"""`map` and the lives of processes: servers that die under it, and forks of the one that maps."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tests.conftest import RunningServer, running_server

from convserve import AsyncClient, Client, Conv2D, Layer, RetryRule

LAYER = Layer(Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 1), 2, "f4"))
IMAGES = [np.full((40, 40, 1), number, "f4") for number in range(200)]
IN_FLIGHT_BYTES = 2**18  # a few calls
QUICK = RetryRule(longest_s=1)


def test_an_asynchronous_pipeline_outlives_a_server_too(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/socket"

    async def run() -> list[float]:
        with ExitStack() as servers:
            server = servers.enter_context(running_server("--listen", address))
            async with AsyncClient(address, timeout=120, retry=QUICK, shared_memory=False) as client:
                layer = await client.put(LAYER)
                found = []
                async for y in client.map(layer, IMAGES, max_bytes=IN_FLIGHT_BYTES):
                    found.append(float(y[0, 0, 0]))
                    if len(found) == 50:
                        server.process.kill()
                        server.process.wait()
                        again = running_server("--listen", address)
                        starting = asyncio.create_task(asyncio.to_thread(servers.enter_context, again))
                await starting
                return found

    assert asyncio.run(run()) == [2.0 * number for number in range(200)]


def test_of_several_servers_one_is_enough() -> None:
    with running_server() as first, running_server() as second, Client([first.target, second.target]) as client:
        found = []
        for y in client.map(client.put(LAYER), IMAGES, max_bytes=IN_FLIGHT_BYTES):
            found.append(float(y[0, 0, 0]))
            if len(found) == 50:
                first.process.kill()
                first.process.wait()
    assert found == [2.0 * number for number in range(200)]


FORKED = """
import itertools, os, sys
import numpy as np
from convserve import Client, Conv2D, InvalidRequestError

def outputs(client, images):
    return client.map(Conv2D(1, 3, kernel_initializer="ones"), images)

image = np.ones((1, 5, 5, 1), "f4")
client = Client(sys.argv[1])
begun = outputs(client, itertools.repeat(image))
next(begun)
child = os.fork()
if child == 0:
    try:
        next(begun)
    except InvalidRequestError as error:
        print(error, flush=True)
        del begun
        os._exit(0 if all((y == 9).all() for y in outputs(client, [image] * 20)) else 3)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool((next(begun) == 9).all()))
begun.close()
"""


def test_a_fork_has_pipelines_of_its_own(server: RunningServer) -> None:
    command = [sys.executable, "-c", FORKED, server.target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    text = "map: Expected the process that began with it. Received another one, forked from it: call map there.\n"
    assert (done.stdout, done.returncode) == (text + "0 True\n", 0), done.stderr
