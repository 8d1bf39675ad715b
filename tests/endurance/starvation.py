"""Callers that take without giving, beside a polite one: does it get its answers as soon as without them?

    python -m tests.endurance.starvation --seconds 10

Each attack has a server of its own, whose --idle-s is an hour, so that nothing is mended by waiting: calls of each form
that send headers and never a message, from few connections and from many; plans of 100,000 layers; messages of empty
messages; answers that are asked for by a few bytes, some of which nobody fetches. Whoever is refused comes again. It
prints the polite caller's latencies alone and beside them. The exit status is 1 if one of its calls was refused or
failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from subprocess import PIPE
from typing import Any

import grpc
import numpy as np

from convserve import Client, ConvserveError, RetryRule
from convserve.v1.convolution_service_pb2 import EchoRequest
from tests.support.processes import ended_afterwards
from tests.support.raw.calls import plan_request
from tests.support.repository import ROOT
from tests.support.servers.server_process import Serve, running_server

_OURS, _LAYERS, _INFERENCE = (
    "/convserve.v1.ConvolutionService",
    "/convserve.v1.LayerService",
    "/inference.GRPCInferenceService",
)
_MESSAGES: dict[str, tuple[str, bytes | None]] = {
    "Convolve without a message": (f"{_OURS}/Convolve", None),
    "Plan without a message": (f"{_OURS}/Plan", None),
    "ReadWeights without a message": (f"{_LAYERS}/ReadWeights", None),
    "ModelInfer without a message": (f"{_INFERENCE}/ModelInfer", None),
    "Check without a message": ("/grpc.health.v1.Health/Check", None),
    "Watch without a message": ("/grpc.health.v1.Health/Watch", None),
    "unknown method without a message": ("/nobody.Knows/This", None),
    "ConvolveStream without a message": (f"{_OURS}/ConvolveStream", None),
    "PutLayer without a message": (f"{_LAYERS}/PutLayer", None),
    "plans of 100,000 layers": (f"{_OURS}/Plan", 100_000 * plan_request().SerializeToString()[:-6]),
    "messages of empty messages": (f"{_OURS}/Convolve", b"\x0a\x00" * 2**22),
    "answers that are asked for by a few bytes": (f"{_OURS}/Echo", EchoRequest(output_bytes=2**27).SerializeToString()),
    "answers that nobody fetches": (f"{_OURS}/Echo", EchoRequest(output_bytes=2**26).SerializeToString()),
}
ATTACKS = tuple(_MESSAGES)
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_PAUSE_S = 0.2  # before whoever was refused comes again
_ONCE = RetryRule(attempts=1)


@dataclass(frozen=True)
class Starvation:
    """What came of one attack. Times are in milliseconds.

    Attributes:
        attack: Its name.
        attackers: Its calls at once.
        outcomes: How the attackers' calls ended, by status code; those that never did are not among them.
        alone_p99: The polite caller's latency before.
        answered: Its calls that were answered during the attack.
        p50: Their latency.
        p99: Likewise.
        worst: Likewise.
        failed: Its calls that were not answered.
    """

    attack: str
    attackers: int
    outcomes: dict[str, int]
    alone_p99: float
    answered: int
    p50: float
    p99: float
    worst: float
    failed: list[str]


def starve(
    attack: str, seconds: float, connections: int = 4, calls: int = 250, *, serve: Serve = running_server
) -> Starvation:
    """Attacks a server of its own, by so many calls at once on each of so many connections."""
    if _MESSAGES[attack][1] is not None:
        calls = min(calls, 4)  # each of which is work
    bounds = ("--idle-s", "3600", "--max-admitted-bytes", str(2**30))
    with serve(*bounds) as server:
        alone, _ = _polite(server.target, seconds / 4)
        with _attacked(server.target, attack, connections, calls) as outcomes:
            latencies, failed = _polite(server.target, seconds)
        assert server.process.poll() is None, server.log.read_text()
    figures = {name: round(float(np.percentile(latencies or [np.inf], at)), 1) for name, at in _PERCENTILES.items()}
    alone_p99 = round(float(np.percentile(alone, 99)), 1)
    return Starvation(
        attack, connections * calls, dict(outcomes), alone_p99, len(latencies), **figures, failed=failed[:3]
    )


_PERCENTILES = {"p50": 50, "p99": 99, "worst": 100}


def _polite(target: str, seconds: float) -> tuple[list[float], list[str]]:
    """Returns the latencies of a caller that comes anew every now and then, and what its other calls ended with."""
    latencies, failed = [], []
    x, kernel = np.ones((1, 8, 8, 3), "f4"), np.ones((3, 3, 3, 4), "f4")
    end = time.monotonic() + seconds
    while not latencies or time.monotonic() < end:
        with Client(target, timeout=60, retry=_ONCE, shared_memory=False) as client:
            for _ in range(10):
                began = time.perf_counter()
                try:
                    client.conv2d(x, kernel=kernel)
                except ConvserveError as error:
                    failed.append(f"{type(error).__name__}: {error}"[:200])
                    if time.monotonic() > end:
                        return latencies, failed
                else:
                    latencies.append(1000 * (time.perf_counter() - began))
                time.sleep(0.02)
    return latencies, failed


@contextmanager
def _attacked(target: str, attack: str, connections: int, calls: int) -> Iterator[dict[str, int]]:
    """Attacks from a process of its own until the block ends. What calls ended with is filled in then."""
    outcomes: dict[str, int] = {}
    command = [sys.executable, "-m", "tests.endurance.starvation", "--attack", attack, "--target", target]
    sizes = ["--connections", str(connections), "--calls", str(calls)]
    with ended_afterwards([*command, *sizes], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield outcomes
        outcomes |= json.loads(process.communicate("")[0])
        assert process.returncode == 0


async def _attack(target: str, attack: str, connections: int, calls: int) -> None:
    """Attacks until stdin ends, says when every call was made once, and what calls ended with; ends the process."""
    outcomes, options = Counter[str](), [*_UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, [*options, ("connection", number)]) for number in range(connections)]
    tasks = [
        asyncio.create_task(_attacker(channel, *_MESSAGES[attack], outcomes, unfetched="fetches" in attack))
        for channel in channels
        for _ in range(calls)
    ]
    await asyncio.sleep(1)
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(outcomes), flush=True)
    os._exit(0 if all(not task.done() for task in tasks) else 1)  # gRPC would take its time to end so many calls


async def _attacker(channel: Any, path: str, message: bytes | None, outcomes: Counter[str], *, unfetched: bool) -> None:
    while True:
        call = channel.stream_stream(path)()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it is over before all is written or read
            if message is not None:
                await call.write(message)
                await call.done_writing()
            while not unfetched and await call.read() is not grpc.aio.EOF:
                pass
        outcomes[(await call.code()).name] += 1
        await asyncio.sleep(_PAUSE_S)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.starvation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--calls", type=int, default=250, help="at once on each connection")
    parser.add_argument("--attack", choices=ATTACKS, action="append")
    parser.add_argument("--target", help="attack this server until stdin ends, and nothing else")
    arguments = parser.parse_args()
    if arguments.target:
        (attack,) = arguments.attack
        asyncio.run(_attack(arguments.target, attack, arguments.connections, arguments.calls))
    failed = False
    for attack in arguments.attack or ATTACKS:
        starved = starve(attack, arguments.seconds, arguments.connections, arguments.calls)
        print(json.dumps(asdict(starved)), flush=True)
        failed |= bool(starved.failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
