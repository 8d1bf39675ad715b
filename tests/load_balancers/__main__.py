"""Tries the load balancers' configurations of server/load_balancers with the balancers that this machine has.

    python -m tests.load_balancers [nginx] [haproxy] [envoy] [envoy-web] [--stops 12]

Three servers are behind each, which compute with numpy. A balancer that is not there, or too old, is left out, and said
to be. Prints a table; the exit status is 1 if something does not hold. With --stops nothing is tried but so many stops.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.load_balancers import single_calls, under_load
from tests.load_balancers.balancers import BALANCERS, Balancer, NotTriedError, running
from tests.load_balancers.servers import Servers
from tests.load_balancers.web import curl, describe_contract, fetch
from tests.support.servers.certificates import Authority

_PRE_STOP_S = 6
Check = tuple[str, Callable[[], str]]


def checks(balancer: Balancer, target: str, servers: Servers) -> Iterator[Check]:
    """Yields what is tried with a balancer for gRPC, by name."""
    for check in (
        single_calls.health,
        single_calls.small_calls,
        single_calls.large_tensors,
        single_calls.mapped,
        single_calls.deadline,
        single_calls.cancellation,
        single_calls.errors,
    ):
        yield check.__name__.replace("_", " "), lambda check=check: check(target, servers)
    if balancer.asks_health:
        yield "out and in", lambda: under_load.out_and_in(target, servers, 0)
    yield "drain", lambda: under_load.drained(target, servers, 1, asks_health=balancer.asks_health)
    yield "kill -9", lambda: under_load.killed(target, servers, 2)


def tried(balancer: Balancer, folder: Path, ca: Path, stops: int) -> Iterator[tuple[str, str, bool]]:
    """Tries a balancer; yields what was tried, what came of it, and whether that is right."""
    with Servers(3, f"--pre-stop-s={_PRE_STOP_S}") as servers:
        servers.start(0, 1, 2)
        if stops:
            health = balancer.asks_health
            with running(balancer, servers.places, folder) as target:
                stop = lambda: under_load.drained(target, servers, 1, stops=stops, asks_health=health)  # noqa: E731
                yield from outcomes([(f"{stops} stops", stop)])
            return
        if not balancer.speaks_grpc:
            describe_contract(folder)
            with running(balancer, servers.places, folder) as target:
                yield from outcomes([("curl", lambda: curl(target)), ("fetch", lambda: fetch(target, servers, folder))])
            return
        with running(balancer, servers.places, folder) as target:
            yield from outcomes(checks(balancer, target, servers))
        with running(balancer, servers.places, folder, tls=True) as target:
            yield from outcomes([("TLS", lambda: single_calls.encrypted(target, ca))])
        if balancer.asks_health:
            with running(balancer, servers.places, folder, healthz=True) as target:
                yield from outcomes([("out and in by /healthz", lambda: under_load.out_and_in(target, servers, 0))])


def outcomes(checks: Iterator[Check] | list[Check]) -> Iterator[tuple[str, str, bool]]:
    """Yields what came of each check."""
    for name, check in checks:
        try:
            yield name, check(), True
        except Exception as error:  # whatever it is, the other checks are made too
            yield name, f"{type(error).__name__}: {error}".replace("\n", " ")[:600], False


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.load_balancers", description=__doc__.split("\n", 1)[0])
    known = [each.name for each in BALANCERS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all of them by default")
    parser.add_argument("--stops", type=int, default=0)
    arguments = parser.parse_args()
    given = arguments.names
    if unknown := set(given) - set(known):
        parser.error(f"Expected names among {', '.join(known)}. Received {', '.join(sorted(unknown))}.")
    rows, all_hold = [], True
    for balancer in BALANCERS:
        if (given and balancer.name not in given) or (arguments.stops and not balancer.speaks_grpc):
            continue
        try:
            version = balancer.found()
        except NotTriedError as error:
            rows.append((balancer.name, "", f"skipped: {error}", True))
            print(f"{balancer.name}: skipped: {error}", flush=True)
            continue
        folder = Path(tempfile.mkdtemp(prefix="convserve-balancer-"))
        authority = Authority(folder)
        pair = authority.issue("convserve")
        pair.certificate.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())  # as HAProxy has it
        started = time.monotonic()
        for name, outcome, holds in tried(balancer, folder, authority.ca, arguments.stops):
            print(f"{balancer.name} {version} {name}: {'' if holds else 'FAILED: '}{outcome}", flush=True)
            rows.append((f"{balancer.name} {version}", name, outcome, holds))
            all_hold &= holds
        print(f"{balancer.name}: {time.monotonic() - started:.0f} s", flush=True)
        shutil.rmtree(folder)
    print("\n| balancer | what | outcome |\n|---|---|---|")
    for balancer_name, name, outcome, holds in rows:
        print(f"| {balancer_name} | {name} | {'' if holds else '**failed**: '}{outcome} |")
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
