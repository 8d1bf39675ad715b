"""A network that delays, swallows and cuts: does every call end in time, in a right answer or an error of ours?

    python -m tests.endurance.network --calls 2000

Clients, a blocking and an asynchronous one, call a server through a proxy that treats each connection as chance has it.
The exit status is 1 if an answer was wrong, an error none of ours, or a call took longer than its timeout allows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convserve import AsyncClient, Client, Conv2D, ConvserveError, RetryRule
from tests.support.servers.counting_proxy import CountingProxy
from tests.support.servers.server_process import Serve, running_server

_TIMEOUT_S = 3.0
_LATE_S = 10.0  # that an error may come after its deadline on a machine that is busy
_CALLERS = 8
_RULE = RetryRule(attempts=20, initial_s=0.02, longest_s=0.5)
# Of an image that goes in one message, and of one that goes in pieces.
_SHAPES = ((1, 8, 8, 3), (4, 300, 300, 3))


class FaultyProxy(CountingProxy):
    """Passes on what it gets, until chance has it that it delays, swallows or cuts."""

    def __init__(self, server: str, seed: int) -> None:
        self._chance = random.Random(seed)
        super().__init__(server)

    def _forward(self, data: bytes, source: socket.socket, target: socket.socket) -> bool:
        fate = self._chance.random()
        if fate < 0.004:
            return False
        if fate < 0.006:
            self._swallow(source)
            return False
        if fate < 0.1:
            time.sleep(self._chance.random() * 0.02)
        if fate < 0.104:
            target.sendall(data[: len(data) // 2])  # and cut in the middle
            return False
        target.sendall(data)
        return True

    @staticmethod
    def _swallow(source: socket.socket) -> None:
        """Takes what comes for some seconds, and passes nothing on."""
        source.settimeout(0.1)
        until = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < until:
            with suppress(TimeoutError):
                if not source.recv(2**16):
                    return


@dataclass
class Network:
    """What came of it.

    Attributes:
        calls: How many there were.
        answered: How many were answered rightly.
        errors: How many failed, by the error's class.
        defects: What must not be: a wrong answer, an error that is not ours, a call that ended too late.
        longest_s: The longest call.
    """

    calls: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, began: float, outcome: Any, right: Callable[[Any], bool]) -> None:
        """Notes what a call came to: its answer, or the exception."""
        took = time.monotonic() - began
        with self._lock:
            self.calls += 1
            self.longest_s = max(self.longest_s, took)
            if took > _TIMEOUT_S + _LATE_S:
                self.defects.append(f"a call took {took:.1f} s: {outcome!r:.300}")
            if isinstance(outcome, ConvserveError):
                self.errors[type(outcome).__name__] += 1
            elif isinstance(outcome, BaseException):
                self.defects.append(f"an error that is not ours: {outcome!r:.300}")
            elif right(outcome):
                self.answered += 1
            else:
                self.defects.append("a wrong answer")


def bad_network(calls: int, seed: int = 0, *, serve: Serve = running_server) -> Network:
    """Makes so many calls over a bad network, half of them by each kind of client."""
    found = Network()
    kernel = np.random.default_rng(0).integers(-3, 4, (1, 1, 3, 4)).astype("f4")
    config = Conv2D(4, 1, use_bias=False, data_format="channels_last")

    def input_of(number: int) -> np.ndarray:
        return np.full(_SHAPES[number % 7 == 0], number % 97, "f4")

    def right(number: int) -> Callable[[Any], bool]:
        return lambda y: bool((y == (number % 97) * kernel.sum((0, 1, 2))).all())

    options = {"timeout": _TIMEOUT_S, "retry": _RULE, "shared_memory": False}
    with serve() as server:
        proxy = FaultyProxy(server.target, seed)
        try:
            with Client(server.target, shared_memory=False) as sure:
                layer = sure.put(config, kernel=kernel)
            with Client(proxy.target, **options) as client, ThreadPoolExecutor(_CALLERS) as pool:

                def call(number: int) -> None:
                    began = time.monotonic()
                    try:
                        outcome: Any = client.convolve(layer, input_of(number)).output
                    except Exception as error:
                        outcome = error
                    found.note(began, outcome, right(number))

                list(pool.map(call, range(calls // 2)))
            asyncio.run(_asynchronous(proxy.target, options, layer, calls - calls // 2, input_of, right, found))
        finally:
            proxy.close()
        with Client(server.target, shared_memory=False) as sure:
            assert right(5)(sure.convolve(layer, input_of(5)).output)
    return found


async def _asynchronous(
    target: str,
    options: dict[str, Any],
    layer: Any,
    calls: int,
    input_of: Callable[[int], np.ndarray],
    right: Callable[[int], Callable[[Any], bool]],
    found: Network,
) -> None:
    async with AsyncClient(target, **options) as client:
        numbers = iter(range(calls))

        async def repeat() -> None:
            for number in numbers:
                began = time.monotonic()
                try:
                    outcome: Any = (await client.convolve(layer, input_of(number))).output
                except Exception as error:
                    outcome = error
                found.note(began, outcome, right(number))

        await asyncio.gather(*(repeat() for _ in range(_CALLERS)))


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.network", description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    found = bad_network(**vars(parser.parse_args()))
    shown = {name: value for name, value in vars(found).items() if not name.startswith("_")}
    print(json.dumps(shown, indent=2))
    return 1 if found.defects else 0


if __name__ == "__main__":
    sys.exit(main())
