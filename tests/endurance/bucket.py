"""Several servers that share a bucket: writers of one name, kills, a bucket that goes away, and strange objects in it.

    python -m tests.endurance.bucket --away 60

moto's server is the bucket, in an environment of its own that the first run makes (.venv-moto). The exit status is 1 if
anything was lost, doubled, wrong or refused that should not be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convserve import Client, LayerNotFoundError, NameConflictError, RetryRule, UnavailableError
from tests.support.layers.numbered import ONES, is_of, numbered
from tests.support.servers.bucket_server import BucketProxy, bucket_server
from tests.support.servers.server_process import RunningServer, Serve, running_server

STORE = "s3://convserve-trial/some/prefix"
_ONCE = RetryRule(attempts=1)
_PATIENT = RetryRule(attempts=1000, longest_s=0.5)


class Servers:
    """Servers of one bucket at Unix sockets, each of which can be killed and started again at its address."""

    def __init__(self, folder: Path, variables: dict[str, str], serve: Serve, *options: str) -> None:
        self._folder, self._variables, self._serve, self._options = folder, variables, serve, options
        self._running: dict[int, tuple[ExitStack, RunningServer]] = {}

    def address(self, number: int) -> str:
        return f"unix://{self._folder}/{number}"

    def start(self, number: int) -> RunningServer:
        stack = ExitStack()
        options = ("--store", STORE, "--listen", self.address(number), *self._options)
        server = stack.enter_context(self._serve(*options, environment=self._variables))
        self._running[number] = stack, server
        return server

    def kill(self, number: int) -> None:
        stack, server = self._running.pop(number)
        server.process.kill()
        server.process.wait()
        stack.close()

    def logs(self) -> str:
        return "".join(server.log.read_text() for _, server in self._running.values())

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._running):
            self.kill(number)


def write_at_once(servers: Servers, writers: int, moves: int, kills: int) -> dict[str, Any]:
    """Writers move one name through four servers, which are killed in between; each version is there exactly once."""
    for number in range(4):
        servers.start(number)
    done = threading.Event()

    def write(writer: int) -> None:
        """Every other one says what it expects, and begins again after a conflict."""
        with Client(servers.address(writer % 4), retry=_PATIENT, timeout=300) as client:
            for turn in range(moves):
                given, is_put = numbered(1000 + writer * moves + turn), False
                while not is_put:
                    try:
                        expect = client.versions("trial/one")[-1].digest if writer % 2 else None
                        client.put(given, name="trial/one", expect=expect)
                        is_put = True
                    except NameConflictError:
                        continue
                    except UnavailableError:  # its answer was lost: a put without `expect` is not sent again by itself
                        is_put = given.digest in [version.digest for version in client.versions("trial/one")]

    def kill() -> int:
        rng, killed = random.Random(0), 0
        while killed < kills and not done.wait(rng.uniform(0.3, 1.0)):
            number = rng.randrange(4)
            servers.kill(number)
            servers.start(number)
            killed += 1
        return killed

    with Client(servers.address(0)) as client:
        client.put(numbered(999), name="trial/one")
    with ThreadPoolExecutor(writers + 1) as pool:
        killing = pool.submit(kill)
        writing = [pool.submit(write, number) for number in range(writers)]
        for each in writing:
            each.result()
        done.set()
        killed = killing.result()
    with Client(servers.address(0)) as client:
        versions = client.versions("trial/one")
    counted = Counter(version.digest for version in versions)
    wanted = {numbered(999 + number).digest for number in range(1 + writers * moves)}
    return {
        "moves": len(wanted),
        "kills": killed,
        "versions": len(versions),
        "lost": len(wanted - counted.keys()),
        "doubled": sum(count - 1 for count in counted.values()),
        "numbers in order": [version.number for version in versions] == list(range(1, len(versions) + 1)),
    }


def find_everywhere(servers: Servers, rounds: int) -> dict[str, Any]:
    """What one server is given all have at once, while one is killed and one is new."""
    missed = wrong = 0
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(servers.address(n), retry=_PATIENT, timeout=300)) for n in range(5)]
        for turn in range(rounds):
            if turn == rounds // 3:
                servers.kill(1)
                servers.start(4)
            alive = [0, 2, 3, 4] if turn >= rounds // 3 else [0, 1, 2, 3]
            name = f"trial/found/{turn}"
            clients[alive[turn % 4]].put(numbered(turn), name=name)
            for number in alive:
                try:
                    wrong += not is_of(clients[number].layer(name)(ONES), turn)
                except LayerNotFoundError:
                    missed += 1
    return {"look-ups and calls": 4 * rounds, "missed": missed, "wrong": wrong}


def lose_the_bucket(servers: Servers, proxy: BucketProxy, seconds: float) -> dict[str, Any]:
    """Callers go on while the bucket is away: half of the time it refuses, half of the time it says nothing."""
    took: list[float] = []
    failed: list[str] = []
    done = threading.Event()

    def call(number: int) -> None:
        with Client(servers.address(number), retry=_ONCE, timeout=60) as client:
            while not done.is_set():
                began = time.monotonic()
                try:
                    if not is_of(client.layer("trial/kept")(ONES), 7):
                        failed.append("wrong")
                except Exception as error:
                    failed.append(f"{type(error).__name__}: {error}")
                took.append(time.monotonic() - began)

    numbers = (0, 2, 3)
    with ExitStack() as stack, ThreadPoolExecutor(len(numbers)) as pool:
        clients = {n: stack.enter_context(Client(servers.address(n), retry=_ONCE, timeout=60)) for n in numbers}
        clients[0].put(numbered(7), name="trial/kept")
        for client in clients.values():
            client.layer("trial/kept")(ONES)
        before = servers.logs().count(" is away")
        calling = [pool.submit(call, number) for number in numbers]
        refusals = Counter[str]()
        for kind in ("is_away", "is_silent"):
            setattr(proxy, kind, True)
            end = time.monotonic() + seconds / 2
            while time.monotonic() < end:
                try:
                    clients[2].put(numbered(8), name="trial/refused")
                    refusals["stored"] += 1
                except UnavailableError:
                    refusals["UNAVAILABLE"] += 1
                time.sleep(0.5)
            setattr(proxy, kind, False)
            began = time.monotonic()
            while True:
                try:
                    clients[2].put(numbered(9), name="trial/back")
                    break
                except UnavailableError:
                    time.sleep(0.05)
            back_s = time.monotonic() - began
        done.set()
        for each in calling:
            each.result()
    return {
        "away_s": seconds,
        "calls": len(took),
        "calls that failed": len(failed),
        "how": sorted(set(failed))[:3],
        "slowest_ms": round(1000 * max(took)),
        "median_ms": round(1000 * statistics.median(took), 1),
        "puts": dict(refusals),
        "stored again after_s": round(back_s, 2),
        "logged as away": servers.logs().count(" is away") - before,
    }


def find_strange_objects(servers: Servers, variables: dict[str, str]) -> dict[str, Any]:
    """A foreign object and one of another layer are reported, not computed with, and replaced by who has the layer."""
    from obstore.store import from_url

    os.environ.update(variables)
    bucket = from_url(STORE, client_options={"allow_http": True})
    import obstore

    found = {}
    with Client(servers.address(0), retry=_PATIENT) as owner:
        for number, (kind, content) in enumerate({"foreign": b"hello", "stale": None}.items(), 20):
            name = f"trial/{kind}"
            owner.put(numbered(number), name=name)
            path = f"layers/{numbered(number).digest.hex()}.safetensors"
            other = f"layers/{numbered(7).digest.hex()}.safetensors"
            obstore.put(bucket, path, content or bytes(obstore.get(bucket, other).bytes()))
            servers.kill(2)
            server = servers.start(2)
            with Client(servers.address(2), retry=_PATIENT) as client:
                try:
                    client.layer(name)(ONES)
                    found[kind] = "computed with"
                except LayerNotFoundError:
                    found[kind] = "refused"
                logged = "is not that layer, and not served" in server.log.read_text()
                client.put(numbered(number))
                is_mended = is_of(client.layer(name)(ONES), number)
                found[kind] += f", {'logged' if logged else 'silent'}, {'mended' if is_mended else 'broken'}"
    return found


def measure(variables: dict[str, str], serve: Serve) -> dict[str, Any]:
    """What calls and look-ups cost with a name that is asked for once a second, or each time."""

    def milliseconds(act: Callable[[], Any], times: int) -> float:
        took = []
        for _ in range(times):
            began = time.perf_counter()
            act()
            took.append(1000 * (time.perf_counter() - began))
        return round(statistics.median(took), 2)

    figures = {}
    for label, options in {
        "folder": None,
        "bucket, --store-age-s 1": ("--store", STORE),
        "bucket, --store-age-s 0": ("--store", STORE, "--store-age-s", "0"),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            chosen = options or ("--store", folder)
            with serve(*chosen, environment=variables) as server, Client(server.target) as client:
                stored = client.put(numbered(3), name="trial/measured")
                fresh = iter(range(10_000, 20_000))
                figures[label] = {
                    "call by digest": milliseconds(lambda: stored(ONES), 300),  # noqa: B023
                    "look-up by name": milliseconds(lambda: client.layer("trial/measured"), 300),
                    "put with a name": milliseconds(lambda: client.put(numbered(next(fresh)), name="trial/x"), 30),  # noqa: B023
                    "list of a prefix": milliseconds(lambda: list(client.layers(name_prefix="trial/measured")), 20),
                }
    return figures


def try_all(away_s: float, writers: int, moves: int, kills: int, rounds: int, serve: Serve) -> dict[str, Any]:
    """Runs everything; returns what came of each part."""
    with tempfile.TemporaryDirectory() as folder, bucket_server() as (proxy, variables):
        with Servers(Path(folder), variables, serve) as servers:
            found: dict[str, Any] = {
                "writers of one name": write_at_once(servers, writers, moves, kills),
                "found everywhere": find_everywhere(servers, rounds),
                "bucket away": lose_the_bucket(servers, proxy, away_s),
                "strange objects": find_strange_objects(servers, variables),
            }
            found["secrets in the logs"] = servers.logs().count("secret-of-the-trial")
        found["milliseconds, medians"] = measure(variables, serve)
    return found


def is_sound(found: dict[str, Any]) -> bool:
    """Returns whether nothing was lost, doubled, wrong, or refused that should not be."""
    writers, away = found["writers of one name"], found["bucket away"]
    return (
        (writers["lost"], writers["doubled"], writers["numbers in order"]) == (0, 0, True)
        and (found["found everywhere"]["missed"], found["found everywhere"]["wrong"]) == (0, 0)
        and (away["calls that failed"], away["puts"].get("stored", 0)) == (0, 0)
        and away["calls"] > 0
        and set(found["strange objects"].values()) == {"refused, logged, mended"}
        and found["secrets in the logs"] == 0
    )


def main() -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.bucket", description=__doc__)
    parser.add_argument("--away", type=float, default=60.0, help="seconds without the bucket")
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--moves", type=int, default=25, help="of each writer")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=250, help="of a put, and a look-up and a call at each server")
    parser.add_argument("--numpy", action="store_true", help="servers that compute with NumPy and start at once")
    given = parser.parse_args()
    from tests.support.servers.server_process import numpy_server

    serve: Serve = numpy_server if given.numpy else running_server
    found = try_all(given.away, given.writers, given.moves, given.kills, given.rounds, serve)
    print(json.dumps(found, indent=2))
    return 0 if is_sound(found) else 1


if __name__ == "__main__":
    sys.exit(main())
