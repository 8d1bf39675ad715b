"""A server that is killed again and again while a pipeline runs: does every item come back, once and right?

    python -m tests.endurance.kills --items 10000 --kills 100

The server keeps its layers in a folder, and is started again on the same address. The exit status is 1 if an item was
lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from convserve import Client, Conv2D, RetryRule
from tests.conftest import running_server

_PATIENT = RetryRule(attempts=10**6, longest_s=1.0)
_SENDERS = 8
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Kills:
    """What came of it.

    Attributes:
        items: How many there were.
        kills: How often the server was killed.
        right: How many items came back right.
        lost: How many did not come back.
        doubled: How many came back more than once.
        wrong: How many came back with something else, or with an error.
    """

    items: int
    kills: int
    right: int
    lost: int
    doubled: int
    wrong: int


def kill_often(items: int, kills: int, shape: tuple[int, ...] = (1, 24, 24, 3)) -> Kills:
    """Runs a pipeline over a server that is killed at random moments."""
    came: Counter[int] = Counter()
    right: Counter[int] = Counter()
    lock = threading.Lock()
    kernel = np.random.default_rng(0).integers(-3, 4, (3, 3, 3, 4)).astype("f4")
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix://{folder}/socket"
        options = ("--store", str(Path(folder) / "store"), "--listen", address)
        with Client(address, timeout=_TIMEOUT_S, retry=_PATIENT, shared_memory=False) as client:
            pipeline = ThreadPoolExecutor(_SENDERS)
            # Moments of a kill: after so many items have come back.
            moments = sorted(random.Random(0).sample(range(1, items), min(kills, items - 1)))
            reached = threading.Condition(lock)

            def item(number: int) -> None:
                x = np.full(shape, number % 97, "f4")
                y = layer(x)
                with lock:
                    came[number] += 1
                    # The middle of a constant image is the sum of the kernel.
                    right[number] += bool((y[0, 3, 3] == (number % 97) * kernel.sum((0, 1, 2))).all())
                    reached.notify_all()

            futures: list[Future[None]] = []
            killed = 0

            def enough(number: int) -> bool:
                return sum(came.values()) >= number or all(each.done() for each in futures)

            while True:
                with running_server(*options) as server:
                    if not futures:
                        layer = client.put(Conv2D(4, 3, use_bias=False, data_format="channels_last"), kernel=kernel)
                        futures.extend(pipeline.submit(item, number) for number in range(items))
                    with lock:
                        if killed == len(moments):
                            reached.wait_for(partial(enough, items), _TIMEOUT_S)
                            break
                        reached.wait_for(partial(enough, moments[killed]), _TIMEOUT_S)
                    server.process.kill()
                    server.process.wait()
                    killed += 1
            pipeline.shutdown()
        errors = sum(1 for future in futures if future.exception() is not None)
    return Kills(
        items=items,
        kills=killed,
        right=sum(1 for number in range(items) if right[number] == 1 and came[number] == 1),
        lost=sum(1 for number in range(items) if not came[number]),
        doubled=sum(1 for number in range(items) if came[number] > 1),
        wrong=errors + sum(1 for number in came if right[number] != came[number]),
    )


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.kills", description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    found = kill_often(**vars(parser.parse_args()))
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.right == found.items else 1


if __name__ == "__main__":
    sys.exit(main())
