"""Three servers of one bucket behind a balancer: a name that one was given is found through all.

    python -m tests.load_balancers.one_bucket [nginx] [haproxy] [envoy] [--away 60]

moto's server is the bucket. A server is killed and another added while names are put, looked up and called; then the
bucket is away while callers go on. Prints what came of it; the exit status is 1 if a name was missed or a call failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from convserve import Client, LayerNotFoundError, RetryRule, UnavailableError
from tests.load_balancers.balancers import BALANCERS, Balancer, NotTriedError, running
from tests.load_balancers.servers import Servers
from tests.support.layers.numbered import ONES, is_of, numbered
from tests.support.servers.bucket_server import BucketProxy, bucket_server
from tests.support.servers.certificates import Authority
from tests.support.servers.server_process import numpy_server

_STORE = ("--store", "s3://convserve-trial/behind/a/balancer")
_LOOK_UPS = 1000
_PATIENT = RetryRule(attempts=1000, longest_s=0.5)


def found_through_all(target: str, servers: Servers) -> dict[str, int]:
    """Puts names through the balancer, and looks each up and calls it through the balancer at once."""
    came: Counter[str] = Counter({"missed": 0, "wrong": 0})
    with Client(target, retry=_PATIENT, timeout=120) as client:
        for number in range(_LOOK_UPS):
            if number % 10 == 0:
                name = f"behind/{number}"
                client.put(numbered(number), name=name)
            if number == _LOOK_UPS // 3:
                servers.kill(1)
            if number == _LOOK_UPS // 2:
                servers.start(3)
            try:
                y = client.layer(name)(ONES)
                came["wrong"] += not is_of(y, number // 10 * 10)
            except LayerNotFoundError:
                came["missed"] += 1
            came["look-ups and calls"] += 1
    return dict(came)


def without_the_bucket(target: str, proxy: BucketProxy, seconds: float) -> dict[str, Any]:
    """Callers go on; what they do not get are puts."""
    came: Counter[str] = Counter({"failed": 0})
    slowest_s, ended = 0.0, threading.Event()
    with Client(target, retry=_PATIENT, timeout=120) as client, Client(target, retry=RetryRule(attempts=1)) as once:
        for _ in range(30):  # each server has seen the name and has its layer
            client.layer("behind/0")(ONES)
        proxy.is_away = True
        threading.Timer(seconds, ended.set).start()
        while not ended.is_set():
            began = time.monotonic()
            try:
                came["failed"] += not is_of(once.layer("behind/0")(ONES), 0)
            except Exception as error:
                came["failed"] += 1
                came[type(error).__name__] += 1
            slowest_s = max(slowest_s, time.monotonic() - began)
            came["look-ups and calls"] += 1
        try:
            once.put(numbered(1), name="behind/new")
            came["stored"] += 1
        except UnavailableError:
            came["put refused"] += 1
        proxy.is_away = False
        client.put(numbered(1), name="behind/new")
    return dict(came) | {"slowest_ms": round(1000 * slowest_s)}


def tried(balancer: Balancer, away_s: float) -> dict[str, Any]:
    """Tries a balancer."""
    folder = Path(tempfile.mkdtemp(prefix="convserve-balancer-"))
    try:
        pair = Authority(folder).issue("convserve")
        pair.certificate.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
        with (
            bucket_server() as (proxy, variables),
            Servers(4, *_STORE, serve=partial(numpy_server, environment=variables)) as servers,
        ):
            servers.start(0, 1, 2)
            with running(balancer, servers.places, folder) as target:
                shared = found_through_all(target, servers)
                return {"found through all": shared, "bucket away": without_the_bucket(target, proxy, away_s)}
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.load_balancers.one_bucket", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the balancers; all of them by default")
    parser.add_argument("--away", type=float, default=60.0, help="seconds without the bucket")
    given, holds = parser.parse_args(), True
    for balancer in BALANCERS:
        if not balancer.speaks_grpc or (given.names and balancer.name not in given.names):
            continue
        try:
            version = balancer.found()
        except NotTriedError as error:
            print(f"{balancer.name}: skipped: {error}")
            continue
        found = tried(balancer, given.away)
        print(f"{balancer.name} {version}: {json.dumps(found)}", flush=True)
        shared, away = found["found through all"], found["bucket away"]
        holds &= (shared["missed"], shared["wrong"], away["failed"], away.get("stored", 0)) == (0, 0, 0, 0)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
