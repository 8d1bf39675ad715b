"""Connections that nobody needs, more than a server may have: does everybody else still call?

    python -m tests.endurance.connections --seconds 600

Some say nothing, some answer HTTP/2's pings, some have made a call, and as fast as the server closes them they come
again. Beside them one polite caller keeps its connection and another makes a new one for each call. The exit status is
1 if one of their calls failed, the server ended, or it had more descriptors than it may.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field

import grpc
import numpy as np

from convserve import Client, ConvserveError, RetryRule
from tests.support.processes import descriptors
from tests.support.raw.calls import RawCaller
from tests.support.raw.silent import SilentConnections
from tests.support.servers.server_process import Serve, running_server

_TOKEN = "an-honest-callers-token"  # noqa: S105
_OFTEN = RetryRule(attempts=1000)
_LOCAL_POOL = [("grpc.use_local_subchannel_pool", 1)]
_ROUND_S = 0.25


@dataclass
class Crowd:
    """What came of it. Times are in seconds.

    Attributes:
        opened: How many connections were opened that nobody needs.
        closed: How many of them the server closed.
        kept: The latencies of the caller that keeps its connection.
        new: Those of the one that makes a new one each time.
        failures: The polite callers' errors.
        max_descriptors: The most that the server had open.
        alive: Whether it still runs.
    """

    opened: int = 0
    closed: int = 0
    kept: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    max_descriptors: int = 0
    alive: bool = True


def crowd(
    seconds: float,
    *,
    max_connections: int = 1000,
    files: int = 1024,
    tokens: bool = False,
    serve: Serve = running_server,
) -> Crowd:
    """Crowds a server of its own that may have so many connections, and files open.

    Args:
        seconds: For how long.
        max_connections: The server's setting; of connections that nobody needs there are a half more.
        files: The limit of its process.
        tokens: Whether it asks for tokens, which the polite callers have.
        serve: Starts the server.
    """
    found = Crowd()
    environment = {"CONVSERVE_TOKEN": _TOKEN} if tokens else {}
    flags = ("--max-connections", str(max_connections), "--shared-memory")
    with (
        serve(*flags, environment=environment, limits={resource.RLIMIT_NOFILE: files}) as server,
        ExitStack() as opened,
    ):
        token = _TOKEN if tokens else None
        called: deque[grpc.Channel] = deque()
        silent = opened.enter_context(SilentConnections(server.target))
        mute = opened.enter_context(SilentConnections(server.target, speaks=False))
        kept = opened.enter_context(Client(server.target, token=token, timeout=20, retry=_OFTEN))
        _call(kept)
        end = time.monotonic() + seconds
        callers = [
            threading.Thread(target=_polite, args=(end, lambda: _call(kept), found.kept, found.failures)),
            threading.Thread(target=_polite, args=(end, lambda: _new(server.target, token), found.new, found.failures)),
        ]
        for each in callers:
            each.start()
        while time.monotonic() < end or not found.opened:
            missing = 3 * max_connections // 2 - (found.opened - silent.closed - mute.closed)
            count = max(3, missing) // 3
            silent.open(count)
            mute.open(count)
            found.opened += 2 * count
            for _ in range(min(count, 5)):
                called.append(_called_once(server.target))
            while len(called) > max_connections:
                called.popleft().close()
            found.max_descriptors = max(found.max_descriptors, descriptors(server.process.pid))
            time.sleep(_ROUND_S)
        for each in callers:
            each.join()
        for channel in called:
            channel.close()
        found.closed = silent.closed + mute.closed
        found.alive = server.process.poll() is None
    return found


def _call(client: Client) -> None:
    assert client.conv2d(np.ones((1, 4, 4, 1), "f4"), 1, 1, kernel_initializer="ones").shape == (1, 4, 4, 1)


def _new(target: str, token: str | None) -> None:
    # A channel to another name has a connection of its own.
    with Client(
        target.replace("127.0.0.1", "localhost"), token=token, timeout=20, retry=_OFTEN, shared_memory=False
    ) as client:
        _call(client)


def _called_once(target: str) -> grpc.Channel:
    """Opens a connection, and makes one call on it that needs no token."""
    channel = grpc.insecure_channel(target, _LOCAL_POOL)
    with suppress(grpc.RpcError):
        RawCaller(channel).check_health(timeout=5)
    return channel


def _polite(end: float, call: Callable[[], None], latencies: list[float], failures: list[str]) -> None:
    while time.monotonic() < end or not latencies:
        began = time.monotonic()
        try:
            call()
        except ConvserveError as error:
            failures.append(f"{type(error).__name__}: {error}")
            if time.monotonic() > end:
                return
        else:
            latencies.append(time.monotonic() - began)
        time.sleep(0.1)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.connections", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--max-connections", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--tokens", action="store_true")
    arguments = parser.parse_args()
    found = crowd(**vars(arguments))
    latencies = {
        name: {f"p{number}": float(np.percentile(times or [np.inf], number)) for number in (50, 99)}
        | {"calls": len(times)}
        for name, times in (("kept", found.kept), ("new", found.new))
    }
    print(json.dumps(asdict(found) | latencies | {"failures": found.failures[:10]}, indent=2))
    return 0 if found.alive and not found.failures and found.max_descriptors < arguments.files else 1


if __name__ == "__main__":
    sys.exit(main())
