"""Servers that stop, die and come back behind a balancer, while callers call it without a pause."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from convserve import Client, ConvserveError, RetryRule
from tests.load_balancers.servers import Servers
from tests.load_balancers.single_calls import LAYER, ONCE, SMALL, is_right
from tests.support.waiting import eventually

_PAUSE_S = 2.0
_OUT_S = 5.0  # within which a balancer has noticed that a server stops, or is there again


@dataclass
class Seen:
    """What callers saw: of each kind what was right, what failed, and how long one call or item took at most."""

    right: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    slowest_s: dict[str, float] = field(default_factory=dict)

    def only_once_failed(self) -> bool:
        """Returns whether only the caller that does not retry lost calls, and knows that it may send them again."""
        return all(each.startswith("once: UnavailableError") for each in self.failed)

    def line(self) -> str:
        """Returns a line: first what failed."""
        failed = ", ".join(f"{count} {what}" for what, count in sorted(self.failed.items()))
        right = ", ".join(
            f"{self.right[each]} {each} (at most {self.slowest_s[each]:.1f} s)" for each in sorted(self.right)
        )
        return f"{failed or 'none failed'}; right: {right}"


@contextmanager
def calling(target: str) -> Iterator[Seen]:
    """Lets three callers call until the block ends: one that retries, one that does not, and `map`."""
    seen, is_over, lock = Seen(), threading.Event(), threading.Lock()

    def note(kind: str, began: float, right: int, failure: str = "") -> float:
        now = time.monotonic()
        with lock:
            seen.slowest_s[kind] = max(seen.slowest_s.get(kind, 0), now - began)
            seen.right[kind] += right
            if failure:
                seen.failed[f"{kind}: {failure}"] += 1
        return now

    def call(kind: str, retry: RetryRule) -> None:
        with Client(target, timeout=30, retry=retry) as client:
            while not is_over.is_set():
                began = time.monotonic()
                try:
                    wrong = "" if is_right(client.convolve(LAYER, SMALL).output) else "a wrong answer"
                    note(kind, began, not wrong, wrong)
                except ConvserveError as error:
                    note(kind, began, 0, f"{type(error).__name__} ({str(error)[-50:]})")
                    time.sleep(0.02)

    def map_items() -> None:
        with Client(target, timeout=60) as client:
            while not is_over.is_set():
                began = time.monotonic()
                try:
                    layer = client.put(LAYER)
                    for output in client.map(layer, (SMALL[0] for _ in range(100))):
                        began = note("mapped", began, is_right(output), "" if is_right(output) else "a wrong answer")
                except ConvserveError as error:
                    note("mapped", began, 0, f"{type(error).__name__} ({str(error)[-50:]})")

    threads = [
        threading.Thread(target=call, args=("retrying", RetryRule())),
        threading.Thread(target=call, args=("once", ONCE)),
        threading.Thread(target=map_items),
    ]
    for each in threads:
        each.start()
    try:
        yield seen
    finally:
        is_over.set()
        for each in threads:
            each.join()


def drained(target: str, servers: Servers, number: int, *, stops: int = 1, asks_health: bool) -> str:
    """Stops a server by SIGTERM, and starts it again: nobody loses a call, if the balancer leaves the server before."""
    with calling(target) as seen:
        for _ in range(stops):
            time.sleep(_PAUSE_S)
            status = servers.stop(number)
            time.sleep(_PAUSE_S)
            servers.start(number)
            gets_calls(servers, number)
            assert status == 0, f"the server ended with status {status}"
    assert not seen.failed or (not asks_health and seen.only_once_failed()), seen.line()
    return seen.line()


def killed(target: str, servers: Servers, number: int) -> str:
    """Kills a server, and starts it again: only a caller that does not retry may lose calls."""
    with calling(target) as seen:
        time.sleep(_PAUSE_S)
        servers.kill(number)
        time.sleep(2 * _PAUSE_S)
        servers.start(number)
        gets_calls(servers, number)
    assert seen.only_once_failed(), seen.line()
    return seen.line()


def out_and_in(target: str, servers: Servers, number: int) -> str:
    """Asks a server to stop that goes on serving for a while: calls are to leave it before, and to come back after."""
    place = servers.places[number]
    with calling(target) as seen:
        gets_calls(servers, number)
        asked = time.monotonic()
        servers.ask_to_stop(number)

        def is_left() -> bool:
            before = place.calls()
            time.sleep(0.3)
            return place.calls() == before

        eventually(is_left, _OUT_S)
        out_s = time.monotonic() - asked
        servers.stop(number)
        servers.start(number)
        ready = time.monotonic()
        gets_calls(servers, number)
        in_s = time.monotonic() - ready
    assert not seen.failed, seen.line()
    return f"out after {out_s:.1f} s while it served, in {in_s:.1f} s after it was ready; {seen.line()}"


def gets_calls(servers: Servers, number: int) -> None:
    """Waits until a server has calls."""
    place = servers.places[number]
    before = place.calls()
    eventually(lambda: place.calls() > before, 2 * _OUT_S)
