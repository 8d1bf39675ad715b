"""Clients in a process that forks: they go on in both, also in the middle of calls."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers.server_process import RunningServer

BEGINNING = """
import asyncio, itertools, os, sys, threading
import numpy as np
from convserve import AsyncClient, Client, Conv2D, InvalidRequestError

image = np.ones((1, 5, 5, 1), "f4")
layer = Conv2D(1, 3, kernel_initializer="ones")

def computes(client):
    return bool((client.convolve(layer, image).output == 9).all())

def fork(child):
    # Runs a function in a fork; returns the fork's exit status: 0 where that returned True.
    process = os.fork()
    if process == 0:
        try:
            os._exit(0 if child() else 3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

client = Client(sys.argv[1])
"""

UNUSED = """
print(fork(lambda: computes(client)), computes(client))
"""

USED = """
computes(client)
print(fork(lambda: computes(client)), computes(client))
"""

WITH_AN_ARRAY_OF_EMPTY = """
x = client.empty((1, 300, 300, 4))
x[...] = 1
assert client._tensors.sharing.memory().place_of(x)

def child():
    x[:, :100] = 2
    client.conv2d(x, 1, 1)  # over a connection of its own
    return bool((x[:, :100] == 2).all() and (x[:, 100:] == 1).all())

print(fork(lambda: child() and fork(child) == 0), bool((x == 1).all()) and computes(client))
"""

IN_THE_MIDDLE_OF_CALLS = """
large, stopped, calling = np.ones((1, 300, 300, 3), "f4"), [], threading.Event()

def call():
    while not stopped:
        calling.set()
        client.conv2d(large, 16, 5)

threads = [threading.Thread(target=call, daemon=True) for _ in range(3)]
for each in threads:
    each.start()
calling.wait()
for _ in range(12):
    assert fork(lambda: computes(client) and computes(Client(sys.argv[1]))) == 0
print(fork(lambda: computes(client)), computes(client))
stopped.append(True)
for each in threads:
    each.join()
"""

IN_THE_MIDDLE_OF_MAP = """
begun = client.map(layer, itertools.repeat(image))
next(begun)

def child():
    global begun
    try:
        next(begun)
    except InvalidRequestError as error:
        print(error, flush=True)
        del begun
        return all((y == 9).all() for y in client.map(layer, [image] * 20))

print(fork(child), bool((next(begun) == 9).all()))
begun.close()
"""

AFTER_AN_ASYNCHRONOUS_CLIENT = """
async def call():
    async with AsyncClient(sys.argv[1]) as client:
        return bool(((await client.convolve(layer, image)).output == 9).all())

asyncio.run(call())
print(fork(lambda: asyncio.run(call()) and computes(client)), asyncio.run(call()))
"""

STAYS = "map: Expected the process that began with it. Received another one, forked from it: call map there.\n"


def run(program: str, target: str) -> str:
    command = [sys.executable, "-c", BEGINNING + program, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "program",
    [UNUSED, USED, IN_THE_MIDDLE_OF_CALLS, AFTER_AN_ASYNCHRONOUS_CLIENT],
    ids=["unused", "used", "calls", "asynchronous"],
)
def test_a_client_works_on_both_sides_of_a_fork(server: RunningServer, program: str) -> None:
    assert run(program, server.target) == "0 True\n"


def test_what_a_child_writes_to_an_array_of_empty_stays_there(sharing_server: RunningServer) -> None:
    assert run(WITH_AN_ARRAY_OF_EMPTY, sharing_server.target) == "0 True\n"


def test_a_map_stays_with_the_process_that_began_it(server: RunningServer) -> None:
    assert run(IN_THE_MIDDLE_OF_MAP, server.target) == STAYS + "0 True\n"
