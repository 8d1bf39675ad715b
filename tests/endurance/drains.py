"""One of two servers is told to stop while callers that never retry call both, again and again: does a call get lost?

    python -m tests.endurance.drains --times 20 --pre-stop-s 1

Callers are threads with clients of their own, which name both servers. The exit status is 1 if a call failed, an answer
was wrong, or a server did not end with status 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np

from convserve import Client, Conv2D, ConvserveError, Layer, RetryRule
from tests.support.servers.server_process import Serve, numpy_server

_ONCE = RetryRule(attempts=1)
_LAYER = Layer(Conv2D(4, 3, data_format="channels_last"), np.ones((3, 3, 3, 4), "f4"), np.zeros(4, "f4"))
_BEFORE_S, _AFTER_S = 1.0, 0.5


@dataclass
class Drains:
    """What came of it.

    Attributes:
        times: How often a server was stopped.
        pre_stop_s: Its setting.
        calls: Those that were answered rightly.
        failed: What the others ended with, and how many.
        turns_with_failures: In how many stops a call was lost.
        statuses: The servers' exit statuses that were not 0.
    """

    times: int
    pre_stop_s: float
    calls: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    turns_with_failures: int = 0
    statuses: list[int] = field(default_factory=list)


def drain_often(times: int, pre_stop_s: float, callers: int = 4, *, serve: Serve = numpy_server) -> Drains:
    """Stops one of two servers under calls."""
    found = Drains(times, pre_stop_s)
    with serve() as other:
        for _ in range(times):
            with serve(f"--pre-stop-s={pre_stop_s:g}") as server:
                failures = sum(found.failed.values())
                with _calling(f"{server.target},{other.target}", callers, found):
                    time.sleep(_BEFORE_S)
                    if status := server.stop():
                        found.statuses.append(status)
                    time.sleep(_AFTER_S)
                found.turns_with_failures += sum(found.failed.values()) > failures
    return found


@contextmanager
def _calling(target: str, callers: int, found: Drains) -> Iterator[None]:
    """Lets callers call until the block ends."""
    is_over, lock = threading.Event(), threading.Lock()
    x = np.ones((1, 32, 32, 3), "f4")

    def call() -> None:
        with Client(target, timeout=30, retry=_ONCE) as client:
            while not is_over.is_set():
                try:
                    is_right = bool((client.convolve(_LAYER, x).output == 27).all())
                    failure = "" if is_right else "a wrong answer"
                except ConvserveError as error:
                    failure = f"{type(error).__name__}: {error}"
                with lock:
                    found.calls += not failure
                    if failure:
                        found.failed[failure] = found.failed.get(failure, 0) + 1

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        is_over.set()
        for each in threads:
            each.join()


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.drains", description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--pre-stop-s", type=float, default=1.0)
    found = drain_often(**vars(parser.parse_args()))
    print(json.dumps(asdict(found), indent=2))
    return 1 if found.failed or found.statuses else 0


if __name__ == "__main__":
    sys.exit(main())
