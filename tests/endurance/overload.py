"""More calls than a server can do, for as long as one likes: does it stay, and stay quick for those it takes?

    python -m tests.endurance.overload --seconds 600

First one caller after the other, for the latency without load; then as many at once as it can do, for its capacity;
then twice as many as that, at a steady rate that waits for nobody, each with its own input. Every answer is compared
with what it should be. The exit status is 1 if the server died or grew, an answer was wrong or no honest refusal, or
the 99th percentile of the latencies of what it took is more than three times that without load.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convserve import Client, Conv2D, DeadlineExceededError, OverloadedError, RetryRule
from tests.support.processes import status
from tests.support.servers.server_process import running_server

_ONCE = RetryRule(attempts=1)
_SENDERS = 256  # so many that a rate waits for nobody
_MAX_GROWTH_BYTES = 200_000_000
_SHAPES = {"deep": (2, 14, 14, 512), "large": (4, 100, 100, 16), "small": (1, 32, 32, 3)}
_LAYERS = {
    "deep": Conv2D(512, 5, padding="same", use_bias=False, data_format="channels_last"),
    "large": Conv2D(32, 7, padding="same", use_bias=False, data_format="channels_last"),
    "small": Conv2D(16, 3, padding="same", use_bias=False, data_format="channels_last"),
}


@dataclass(frozen=True)
class Overload:
    """What came of it. Times are in seconds.

    Attributes:
        unloaded_p99: Of one caller alone.
        capacity: Answers per second of callers that wait for theirs.
        offered: Calls per second that were sent.
        answered: How many of them were answered, each rightly.
        refused: How many were refused, by the error's class.
        accepted_p50: The latency of those that were answered.
        accepted_p99: Likewise. It has in it the first ones, which fill the line before the server knows that it is
            overloaded: one in a hundred of ten minutes' calls, and far more of a short time's.
        later_p99: Of those that began after a tenth of the time.
        wrong: Answers that were wrong, and errors that are no honest refusal.
        grown_bytes: By how much the server is larger than after the first tenth of the time.
        alive: Whether it still answers.
    """

    unloaded_p99: float
    capacity: float
    offered: float
    answered: int
    refused: dict[str, int]
    accepted_p50: float
    accepted_p99: float
    later_p99: float
    wrong: list[str]
    grown_bytes: int
    alive: bool

    @property
    def ratio(self) -> float:
        """Of the two percentiles."""
        return self.accepted_p99 / self.unloaded_p99


def overload(seconds: float, kind: str = "deep", times: float = 2.0, callers: int = 1) -> Overload:
    """Overloads a server of its own.

    Args:
        seconds: For how long.
        kind: "deep" calls, which mostly are computed; "large" ones, which are moved and computed; or "small" ones,
            which mostly are on their way. Callers share the machine's cores with the server, and so slow down what is
            moved.
        times: How many times its capacity it is offered.
        callers: Over how many connections.
    """
    config = _LAYERS[kind]
    with running_server() as server:
        clients = [Client(server.target, timeout=10, retry=_ONCE, shared_memory=False) for _ in range(callers)]
        channels = _SHAPES[kind][3]
        kernel = np.random.default_rng(0).integers(-3, 4, (*config.kernel_size, channels, config.filters)).astype("f4")
        layers = [client.put(config, kernel=kernel) for client in clients]
        inputs = [np.random.default_rng(seed).integers(-3, 4, _SHAPES[kind]).astype("f4") for seed in range(8)]
        expected = [layers[0](x) for x in inputs]

        def call(number: int) -> float:
            began = time.perf_counter()
            y = layers[number % callers](inputs[number % len(inputs)])
            took = time.perf_counter() - began
            if not np.array_equal(y, expected[number % len(inputs)]):
                raise AssertionError("a wrong answer")
            return took

        alone = _closed(call, 1, max(2.0, seconds / 20))
        capacity = _closed(call, 8, max(2.0, seconds / 20))
        offered = times * len(capacity[0]) / capacity[1]
        sizes: list[int] = []
        outcome = _open(call, offered, seconds, lambda: sizes.append(status(server.process.pid, "VmRSS")))
        first = sizes[: max(1, len(sizes) // 10)]
        try:
            alive = bool(eventually_answers(call)) and server.process.poll() is None
        finally:
            for client in clients:
                client.close()
        return Overload(
            unloaded_p99=_percentile([(0.0, each) for each in alone[0]], 99),
            capacity=len(capacity[0]) / capacity[1],
            offered=offered,
            answered=len(outcome.latencies),
            refused=dict(outcome.refused),
            accepted_p50=_percentile(outcome.latencies, 50),
            accepted_p99=_percentile(outcome.latencies, 99),
            later_p99=_percentile([each for each in outcome.latencies if each[0] > seconds / 10], 99),
            wrong=outcome.wrong[:10],
            grown_bytes=max(sizes) - max(first),
            alive=alive,
        )


def _percentile(latencies: list[tuple[float, float]], number: int) -> float:
    return float(np.percentile([took for _, took in latencies] or [np.inf], number))


def eventually_answers(call: Callable[[int], float], tries: int = 100) -> bool:
    """Returns whether a server that was overloaded takes a call again."""
    for number in range(tries):
        try:
            call(number)
        except OverloadedError as refusal:
            time.sleep(refusal.retry_after_s)
        else:
            return True
    return False


def _closed(call: Callable[[int], float], callers: int, seconds: float) -> tuple[list[float], float]:
    """Returns the latencies of callers that wait for their answers, and how long it took."""
    found: list[float] = []
    began = time.perf_counter()

    def repeat(number: int) -> None:
        while time.perf_counter() < began + seconds:
            found.append(call(number))

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(repeat, range(callers)))
    return found, time.perf_counter() - began


class _Outcome:
    def __init__(self) -> None:
        self.latencies: list[tuple[float, float]] = []  # when the call began, and what it took
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []


def _open(call: Callable[[int], float], rate: float, seconds: float, each_second: Callable[[], Any]) -> _Outcome:
    """Sends calls at a rate, whatever becomes of them."""
    outcome, began, lock = _Outcome(), time.perf_counter(), threading.Lock()
    number = iter(range(sys.maxsize))

    def send() -> None:
        while True:
            with lock:
                turn = next(number)
            due = began + turn / rate
            if due > began + seconds:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            if turn % max(1, int(rate)) == 0:
                each_second()
            try:
                outcome.latencies.append((due - began, call(turn)))
            except (OverloadedError, DeadlineExceededError) as refusal:
                with lock:
                    outcome.refused[type(refusal).__name__] += 1
            except Exception as error:
                outcome.wrong.append(f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(_SENDERS) as pool:
        for future in [pool.submit(send) for _ in range(_SENDERS)]:
            future.result()
    return outcome


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--kind", choices=tuple(_SHAPES), default="deep")
    parser.add_argument("--times", type=float, default=2.0)
    parser.add_argument("--callers", type=int, default=1)
    found = overload(**vars(parser.parse_args()))
    print(json.dumps({**asdict(found), "ratio": found.ratio}, indent=2))
    good = found.alive and not found.wrong and found.grown_bytes < _MAX_GROWTH_BYTES and found.ratio <= 3
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
