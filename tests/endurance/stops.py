"""A server that is told to stop in the middle of many calls, again and again: is every call that it took answered?

    python -m tests.endurance.stops --times 50

Each time 64 callers call a server of its own; SIGTERM comes when the server has taken all of them. The exit status is 1
if a call was lost, an answer was wrong, or the server did not end with status 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import grpc
import numpy as np
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from convserve import Client, Conv2D, RetryRule
from tests.support.servers.server_process import Serve, running_server

_ONCE = RetryRule(attempts=1)
_CONFIG = Conv2D(8, 15, padding="same", kernel_initializer="ones", data_format="channels_last")


@dataclass(frozen=True)
class Stops:
    """What came of it.

    Attributes:
        times: How often a server was stopped.
        calls: How many calls were under way then, all in all.
        answered: How many of them were answered rightly.
        statuses: The servers' exit statuses that were not 0.
    """

    times: int
    calls: int
    answered: int
    statuses: tuple[int, ...]


def stop_often(times: int, callers: int = 64, *, serve: Serve = running_server) -> Stops:
    """Stops servers in the middle of calls."""
    answered, statuses = 0, []
    x = np.ones((1, 60, 60, 16), "f4")
    for _ in range(times):
        with serve() as server, Client(server.target, retry=_ONCE, shared_memory=False) as client:
            expected = client.convolve(_CONFIG, x).output
            with grpc.insecure_channel(server.target) as channel, ThreadPoolExecutor(callers) as pool:
                stub = channelz_pb2_grpc.ChannelzStub(channel)

                def taken(stub: channelz_pb2_grpc.ChannelzStub = stub) -> int:
                    """Returns the calls that the server has taken, this one among them."""
                    return sum(each.data.calls_started for each in stub.GetServers(_ALL).server)

                before = taken()
                calls = [pool.submit(client.convolve, _CONFIG, x, batching=False) for _ in range(callers)]
                asked = 0
                while taken() - before - (asked := asked + 1) < callers:
                    pass
                taken()  # what arrived before this call was given to a handler before it
                statuses.append(server.stop())
                answered += sum(
                    each.exception() is None and np.array_equal(each.result().output, expected) for each in calls
                )
    return Stops(times, times * callers, answered, tuple(each for each in statuses if each))


_ALL = channelz_pb2.GetServersRequest()


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.stops", description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    found = stop_often(**vars(parser.parse_args()))
    print(json.dumps(asdict(found), indent=2))
    return 0 if found.answered == found.calls and not found.statuses else 1


if __name__ == "__main__":
    sys.exit(main())
