"""A server that is killed again and again while a pipeline runs: does every item come back, once and right?

    python -m tests.endurance.kills --items 10000 --kills 100

The pipeline is `client.map`. The server keeps its layers in a folder, and is started again on the same address. The
exit status is 1 if an item was lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from convserve import Client, Conv2D, ConvserveError, RetryRule
from tests.support.servers.server_process import Serve, running_server

_RETRY = RetryRule(longest_s=1.0)
_TIMEOUT_S = 600.0
_IN_FLIGHT_BYTES = 2**20  # a few calls of a few items


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


def kill_often(
    items: int,
    kills: int,
    shape: tuple[int, ...] = (1, 24, 24, 3),
    *,
    store: bool = True,
    serve: Serve = running_server,
) -> Kills:
    """Runs a pipeline over a server that is killed at random moments.

    Args:
        items: How many items there are.
        kills: How often the server is killed.
        shape: Of an item.
        store: Whether the server keeps its layers in a folder; without, each one that starts has none.
        serve: Starts a server.
    """
    came: Counter[int] = Counter()
    right: Counter[int] = Counter()
    kernel = np.random.default_rng(0).integers(-3, 4, (3, 3, 3, 4)).astype("f4")
    # Moments of a kill: after so many items have come back, while others are under way.
    moments = set(random.Random(0).sample(range(1, items), min(kills, items - 1)))
    killed = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        address = f"unix://{folder}/socket"
        options = ("--listen", address, *(("--store", str(Path(folder) / "store")) if store else ()))
        client = servers.enter_context(Client(address, timeout=_TIMEOUT_S, shared_memory=False, retry=_RETRY))
        server = servers.enter_context(serve(*options))
        layer = client.put(Conv2D(4, 3, use_bias=False, data_format="channels_last"), kernel=kernel)
        inputs = (np.full(shape, number % 97, "f4") for number in range(items))
        outputs = client.map(layer, inputs, as_completed=True, errors="return", max_bytes=_IN_FLIGHT_BYTES)
        for yielded, (number, y) in enumerate(outputs, start=1):
            came[number] += 1
            if not isinstance(y, ConvserveError):
                # The middle of a constant image is the sum of the kernel.
                right[number] += bool((y[0, 3, 3] == (number % 97) * kernel.sum((0, 1, 2))).all())
            if yielded in moments:
                server.process.kill()
                server.process.wait()
                killed += 1
                server = servers.enter_context(serve(*options))
    return Kills(
        items=items,
        kills=killed,
        right=sum(1 for number in range(items) if right[number] == 1 and came[number] == 1),
        lost=sum(1 for number in range(items) if not came[number]),
        doubled=sum(1 for number in range(items) if came[number] > 1),
        wrong=sum(1 for number in came if right[number] != came[number]),
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
