"""What a caller of one address sees through a balancer: sizes, deadlines, cancellation, errors, health, TLS."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convserve import TLS, AsyncClient, Client, Conv2D, ConvserveError, Layer, RetryRule
from tests.load_balancers.servers import Servers
from tests.support.observability.scrapes import STREAM
from tests.support.waiting import eventually

ONCE = RetryRule(attempts=1)
LAYER = Layer(Conv2D(4, 3, data_format="channels_last"), np.ones((3, 3, 3, 4), "f4"), np.zeros(4, "f4"))
SMALL = np.ones((1, 32, 32, 3), "f4")
_MB = 1e6
_LONG = Conv2D(64, 11, padding="same", data_format="channels_last"), np.zeros((2, 512, 512, 16), "f4")  # some seconds
_WIDE = np.zeros((1, 1, 3, 2**16), "f4"), np.zeros(2**16, "f4")
_LATE_S, _CANCELLED_S = 2.0, 5.0


def is_right(output: np.ndarray) -> bool:
    """Returns whether an output of LAYER for ones is what it is to be."""
    return bool((output == 27).all())


def small_calls(target: str, servers: Servers) -> str:
    """Makes calls on one connection, which are to be spread over all servers."""
    before = [place.calls() for place in servers.places if place.server]
    with Client(target, retry=ONCE) as client:
        started = time.monotonic()
        assert all(is_right(client.convolve(LAYER, SMALL).output) for _ in range(300))
        took_s = time.monotonic() - started
    spread = [place.calls() - start for place, start in zip(servers.places, before, strict=False)]
    assert all(spread), f"a server got no call: {spread}"
    return f"300 of 300, {', '.join(f'{each:.0f}' for each in spread)} by server, {took_s / 300 * 1e3:.1f} ms each"


def large_tensors(target: str, _: Servers) -> str:
    """Sends 400 MB and receives as much, in one call."""
    x = np.ones((280, 346, 346, 3), "f4")
    layer = Layer(Conv2D(3, 1, data_format="channels_last"), np.ones((1, 1, 3, 3), "f4"), np.zeros(3, "f4"))
    with Client(target, timeout=300, retry=ONCE) as client:
        started = time.monotonic()
        y = client.convolve(layer, x).output
        took_s = time.monotonic() - started
    assert (y == 3).all()
    return f"{x.nbytes / _MB:.0f} MB there, {y.nbytes / _MB:.0f} MB back, {took_s:.1f} s"


def mapped(target: str, _: Servers) -> str:
    """Streams items."""
    with Client(target) as client:
        layer = client.put(LAYER)
        started = time.monotonic()
        right = sum(is_right(each) for each in client.map(layer, (SMALL[0] for _ in range(2000))))
        took_s = time.monotonic() - started
    assert right == 2000
    return f"2000 of 2000 items, {2000 / took_s:.0f} a second"


def deadline(target: str, servers: Servers) -> str:
    """Gives calls a time: a server tells one that takes longer, as the time came there too, and ends one that waits."""
    with Client(target, retry=ONCE) as client:
        kind, text, _ = _error(lambda client: client.convolve(*_LONG, timeout=0.2), client)
        assert kind == "DeadlineExceededError"
        assert text.startswith("Expected"), text  # by the server, before its time was up
    there = [place for place in servers.places if place.server]

    def ended() -> float:
        return sum(each.metric("convserve_requests_total", STREAM) for each in there)

    before, is_over, started = ended(), threading.Event(), time.monotonic()
    with grpc.insecure_channel(target) as channel:
        call = channel.stream_stream(f"/{STREAM}")(_nothing(is_over), timeout=1.0)
        assert _code(lambda: next(iter(call))) is grpc.StatusCode.DEADLINE_EXCEEDED
        took_s = time.monotonic() - started
        is_over.set()
    assert took_s < 1 + _LATE_S, f"{took_s:.1f} s"
    eventually(lambda: ended() > before, _CANCELLED_S)
    return f"servers know it; DEADLINE_EXCEEDED after {took_s:.2f} s of 1 s, at the server too"


def _nothing(is_over: threading.Event) -> Iterator[bytes]:
    is_over.wait(60)
    yield from ()


def cancellation(target: str, servers: Servers) -> str:
    """Cancels a long call, which is to end at the server."""
    there = _there(servers)

    async def cancelled() -> float:
        async with AsyncClient(target, retry=ONCE, timeout=120) as client:
            call = asyncio.create_task(client.convolve(*_LONG))
            await asyncio.to_thread(eventually, lambda: servers.in_flight(*there))
            call.cancel()
            started = time.monotonic()
            await asyncio.to_thread(servers.wait_until_idle, *there, seconds=_CANCELLED_S)
            took_s = time.monotonic() - started
            # What is computed already goes on for a while, and would keep the next calls waiting.
            running = [servers.places[number] for number in there]
            await asyncio.to_thread(
                eventually, lambda: not sum(p.metric("convserve_running_calls") for p in running), 60
            )
            return took_s

    return f"over for the server after {asyncio.run(cancelled()):.2f} s"


def errors(target: str, servers: Servers) -> str:
    """Makes calls that a server refuses, through the balancer and without it."""
    wrong: list[Callable[[Client], object]] = [
        lambda client: client.convolve(Conv2D(8, 3), np.ones((1, 2, 2, 3), "f4")),
        lambda client: client.layer("nobody's"),
        lambda client: client.convolve([Layer(Conv2D(2**16, 1), *_WIDE)] * 2, SMALL),
        lambda client: client.conv2d(np.ones((1, 2000, 2000, 3), "f4"), 2**15, 1),
    ]
    kinds = []
    with Client(target, retry=ONCE) as through, Client(servers.places[0].target, retry=ONCE) as direct:
        for each in wrong:
            seen = [_error(each, client) for client in (through, direct)]
            assert seen[0] == seen[1], f"{seen[0]} instead of {seen[1]}"
            kinds.append(seen[0][0])
    return f"as without it: {', '.join(dict.fromkeys(kinds))}"


def _error(call: Callable[[Client], object], client: Client) -> tuple[str, str, str]:
    try:
        call(client)
    except ConvserveError as error:
        return (
            type(error).__name__,
            str(error),
            str({key: value for key, value in vars(error).items() if key[0] != "_"}),
        )
    raise AssertionError("the call was answered")


def _code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def health(target: str, _: Servers) -> str:
    """Asks the balancer for the health of the service; a watch would be of one server's."""
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert _code(lambda: next(iter(watch))) is grpc.StatusCode.UNIMPLEMENTED
    return "Check is SERVING, Watch is UNIMPLEMENTED"


def encrypted(tls_target: str, ca: Path) -> str:
    """Calls the port with TLS."""
    with Client(tls_target, tls=TLS(ca=str(ca)), retry=ONCE) as client:
        assert is_right(client.convolve(LAYER, SMALL).output)
    return "one call"


def _there(servers: Servers) -> list[int]:
    return [number for number, place in enumerate(servers.places) if place.server]
