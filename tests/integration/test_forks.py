"""Clients in a process that forks: they go on in both, also in the middle of calls, or the fork says why it cannot."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from tests.conftest import RunningServer

BEGINNING = """
import asyncio, itertools, os, sys, threading
import numpy as np
import convserve._forks
from convserve import AsyncClient, Client, Conv2D, ConvserveError, InvalidRequestError

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

def refused(call):
    try:
        call()
    except InvalidRequestError as error:
        return "Received one that was forked beside an open AsyncClient, or a call" in str(error)

client = Client(sys.argv[1])
"""

UNUSED = """
print(fork(lambda: computes(client)), computes(client))
"""

USED = """
computes(client)
print(fork(lambda: computes(client)), computes(client))
"""

IN_THE_MIDDLE_OF_CALLS = """
large, stopped, calling = np.ones((1, 300, 300, 3), "f4"), [], threading.Event()

def call():
    while not stopped:
        calling.set()
        client.conv2d(large, 16, 5)

threads = [threading.Thread(target=call) for _ in range(3)]
for each in threads:
    each.start()
calling.wait()
for _ in range(5):
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

BESIDE_AN_ASYNCHRONOUS_CLIENT = """
opened = AsyncClient(sys.argv[1])

async def call(client):
    return bool(((await client.convolve(layer, image)).output == 9).all())

asyncio.run(call(opened))
print(fork(lambda: refused(lambda: asyncio.run(call(opened)))), asyncio.run(call(opened)))
"""

WHILE_NOTHING_IS_ANSWERED = """
convserve._forks.LONGEST_WAIT_S = 0.2
waiting = threading.Thread(target=client.info, daemon=True)
waiting.start()
while not convserve._forks.calls_under_way._threads:
    pass

def child():
    again = fork(lambda: refused(lambda: computes(client)))
    return refused(lambda: computes(client)) and refused(lambda: Client("localhost:1")) and again == 0

print(fork(child), waiting.is_alive())
os._exit(0)
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


def test_a_map_stays_with_the_process_that_began_it(server: RunningServer) -> None:
    assert run(IN_THE_MIDDLE_OF_MAP, server.target) == STAYS + "0 True\n"


def test_a_fork_beside_an_open_asynchronous_client_is_told_so(server: RunningServer) -> None:
    assert run(BESIDE_AN_ASYNCHRONOUS_CLIENT, server.target) == "0 True\n"


def test_a_fork_in_the_middle_of_a_call_that_does_not_end_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert run(WHILE_NOTHING_IS_ANSWERED, f"127.0.0.1:{silent.getsockname()[1]}") == "0 True\n"
