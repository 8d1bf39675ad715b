"""More large tensors at once than can be moved in time: are those answered that can be?

    python -m tests.endurance.large_transfers --callers 12

First one call alone, for what it takes; then as many callers as that each send one at the same moment, with a timeout
in which a third of the calls could be answered one after the other. The exit status is 1 if fewer than half of that
third were answered, an answer was wrong, or a call that was not answered failed otherwise than for its deadline, or
later than that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from convserve import Client, Conv2D, ConvserveError, DeadlineExceededError, Layer, OverloadedError, RetryRule
from tests.support.processes import ended_afterwards
from tests.support.servers.server_process import Serve, running_server

_ONCE = RetryRule(attempts=1)
_FILTERS = 64


@dataclass(frozen=True)
class LargeTransfers:
    """What came of it.

    Attributes:
        megabytes: Of input and output of each call.
        alone_s: What a call takes alone, in seconds.
        timeout_s: Of each of the calls that were sent at once.
        possible: How many could be answered in that time, one after the other.
        answered: How many were, each rightly.
        last_s: When the last of them was.
        refused: Those that were not, by the error's class.
        refused_at_s: When half of these were known.
        wrong: Answers that were wrong, and errors that are no honest refusal.
    """

    megabytes: float
    alone_s: float
    timeout_s: float
    possible: int
    answered: int
    last_s: float
    refused: dict[str, int]
    refused_at_s: float
    wrong: list[str]


def large_transfers(
    callers: int = 12,
    side: int = 600,
    samples: int = 2,
    possible: float = 1 / 3,
    busy: int = 0,
    serve: Serve = running_server,
) -> LargeTransfers:
    """Sends large tensors to a server of its own.

    Args:
        callers: How many, each with a connection of its own.
        side: Of the images, of one channel, whose output has 64.
        samples: Of each call.
        possible: The share of the calls that could be answered in time, one after the other.
        busy: Processes that do something else meanwhile.
        serve: Starts the server.
    """
    x = np.random.default_rng(0).integers(0, 9, (samples, side, side, 1)).astype("f4")
    kernel = np.arange(1, _FILTERS + 1, dtype="f4").reshape(1, 1, 1, -1)
    config = Conv2D(_FILTERS, 1, use_bias=False, data_format="channels_last")
    outcomes: list[tuple[float, str]] = []
    with ExitStack() as stack:
        server = stack.enter_context(serve())
        for _ in range(busy):
            stack.enter_context(ended_afterwards([sys.executable, "-c", "while True: pass"]))
        clients = [stack.enter_context(_client(server.target)) for _ in range(callers)]
        layers = [client.put(Layer(config, kernel)) for client in clients]
        for layer in layers:
            layer(x[:1, :8, :8])  # which connects
        alone = []
        for _ in range(3):
            began = time.perf_counter()
            layers[0](x)
            alone.append(time.perf_counter() - began)
        alone_s = sorted(alone)[1]
        timeout_s = alone_s * callers * possible

        def call(number: int) -> None:
            try:
                y = layers[number](x, timeout=timeout_s)
                took = time.perf_counter() - began
                is_right = np.array_equal(y[..., number % _FILTERS], x[..., 0] * (number % _FILTERS + 1))
                outcomes.append((took, "right" if is_right else "a wrong answer"))
            except (DeadlineExceededError, OverloadedError) as refusal:
                outcomes.append((time.perf_counter() - began, type(refusal).__name__))
            except ConvserveError as error:
                outcomes.append((time.perf_counter() - began, f"{type(error).__name__}: {error}"))

        began = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(call, range(callers)))
        alive = server.process.poll() is None
    kinds = [kind for _, kind in outcomes]
    refusals = [(took, kind) for took, kind in outcomes if kind in ("DeadlineExceededError", "OverloadedError")]
    return LargeTransfers(
        megabytes=x.nbytes * (1 + _FILTERS) / 1e6,
        alone_s=alone_s,
        timeout_s=timeout_s,
        possible=int(callers * possible),
        answered=kinds.count("right"),
        last_s=max((took for took, kind in outcomes if kind == "right"), default=0.0),
        refused={kind: kinds.count(kind) for _, kind in refusals},
        refused_at_s=float(np.median([took for took, _ in refusals] or [0.0])),
        wrong=[kind for kind in kinds if kind != "right" and not kind.endswith("Error")] + ["it died"] * (not alive),
    )


@contextmanager
def _client(target: str) -> Iterator[Client]:
    with Client(target, retry=_ONCE, shared_memory=False) as client:
        yield client


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.large_transfers", description=__doc__)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--side", type=int, default=600)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--possible", type=float, default=1 / 3)
    parser.add_argument("--busy", type=int, default=0)
    found = large_transfers(**vars(parser.parse_args()))
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.answered >= found.possible // 2 and not found.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
