"""Two servers behind one client: a layer is put once, and called on both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from tests.conftest import RunningServer, running_server
from tests.counting_proxy import CountingProxy, counting_proxy
from tests.either_client import EITHER_CLIENT

import convserve
from convserve import Conv2D, Layer

CALLS = 20
CONFIG = Conv2D(2048, 1, use_bias=False, data_format="channels_last", dtype="float32")
X = np.ones((1, 2, 2, 512), "f4")
WEIGHT_BYTES = 512 * 2048 * 4


@pytest.fixture(scope="module")
def servers(server: RunningServer) -> Iterator[list[RunningServer]]:
    with running_server() as second:
        yield [server, second]


@pytest.fixture
def proxies(servers: list[RunningServer]) -> Iterator[list[CountingProxy]]:
    with ExitStack() as opened:
        yield [opened.enter_context(counting_proxy(each.target)) for each in servers]


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, proxies: list[CountingProxy]) -> Iterator[Any]:
    """A client of both servers, which has reached both."""
    with request.param([each.target for each in proxies]) as connected:
        reach_both(connected, proxies)
        yield connected


def reach_both(client: Any, proxies: list[CountingProxy]) -> None:
    """Calls until both servers have answered, after which they take turns."""
    while not all(each.received_bytes > 500 for each in proxies):
        client.info()


def new_layer() -> Layer:
    return Layer(CONFIG, np.random.default_rng().integers(-8, 9, (1, 1, 512, 2048)).astype("f4"))


def expected(layer: Layer) -> np.ndarray:
    return np.broadcast_to(layer.kernel.sum(axis=(0, 1, 2)), (1, 2, 2, 2048))


def sent_weights(proxies: list[CountingProxy], before: list[int], calls: int) -> list[float]:
    """Returns how many times each server was sent the weights, calls' own bytes not counted."""
    own = calls * 1.2 * X.nbytes + 50_000
    return [(each.sent_bytes - start) // (WEIGHT_BYTES - own) for each, start in zip(proxies, before, strict=True)]


def test_a_layer_put_once_is_called_on_both_and_sent_to_each_once(client: Any, proxies: list[CountingProxy]) -> None:
    before = [each.sent_bytes for each in proxies]
    given = new_layer()
    layer = client.put(given)
    for _ in range(CALLS):
        np.testing.assert_array_equal(layer(X), expected(given))
    assert sent_weights(proxies, before, CALLS) == [1, 1]


def test_any_number_of_calls_between_does_not_matter(client: Any, proxies: list[CountingProxy]) -> None:
    """Servers take turns, so what is between two calls decides which of them a call reaches."""
    for calls_between in (1, 2, 3):
        before = [each.sent_bytes for each in proxies]
        given = new_layer()
        layer = client.put(given)
        for _ in range(6):
            for _ in range(calls_between):
                client.info()
            np.testing.assert_array_equal(layer(X), expected(given))
        assert max(sent_weights(proxies, before, 6)) == 1


def test_a_chain_finds_its_layers_on_both(client: Any, proxies: list[CountingProxy]) -> None:
    before = [each.sent_bytes for each in proxies]
    first = new_layer()
    second = Layer(Conv2D(1, 1, use_bias=False), np.ones((1, 1, 2048, 1)))
    chain = [client.put(first), client.put(second)]
    for _ in range(6):
        output = client.convolve(chain, X).output
        np.testing.assert_array_equal(output, expected(first).sum(axis=-1, keepdims=True))
    assert sent_weights(proxies, before, 6) == [1, 1]


def test_a_layer_found_by_its_name_on_one_is_called_on_both(
    client: Any, proxies: list[CountingProxy], servers: list[RunningServer]
) -> None:
    given = new_layer()
    with convserve.Client(servers[1].target) as second:
        second.put(given, name="replicas/found")
    for _ in range(3):
        found = client.layer("replicas/found")
        before = [each.sent_bytes for each in proxies]
        for _ in range(6):
            np.testing.assert_array_equal(found(X), expected(given))
        assert sent_weights(proxies, before, 6)[1] == 0
    np.testing.assert_array_equal(found.weights()[0], given.kernel)


def test_many_calls_at_once_send_the_weights_to_each_server_once(proxies: list[CountingProxy]) -> None:
    given = new_layer()

    async def awaited() -> list[np.ndarray]:
        async with convserve.AsyncClient([each.target for each in proxies]) as client:
            layer = await client.put(given)
            return list(await asyncio.gather(*(layer(X) for _ in range(CALLS))))

    outputs = asyncio.run(awaited())
    assert sent_weights(proxies, [0, 0], CALLS) == [1, 1]

    given_next, before = new_layer(), [each.sent_bytes for each in proxies]
    with (
        convserve.Client([each.target for each in proxies]) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        reach_both(client, proxies)
        layer = client.put(given_next)
        outputs_next = list(threads.map(lambda _: layer(X), range(CALLS)))
    for layers_output, of in ((outputs, given), (outputs_next, given_next)):
        for each in layers_output:
            np.testing.assert_array_equal(each, expected(of))
    assert sent_weights(proxies, before, CALLS) == [1, 1]


def test_a_second_client_sends_nothing_that_both_hold(client: Any, proxies: list[CountingProxy]) -> None:
    given = new_layer()
    layer = client.put(given)
    for _ in range(4):
        layer(X)
    before = [each.sent_bytes for each in proxies]
    for _ in range(3):
        again = client.put(given)
        np.testing.assert_array_equal(again(X), expected(given))
    assert sent_weights(proxies, before, 3) == [0, 0]


def test_calls_go_on_while_one_server_is_away(servers: list[RunningServer]) -> None:
    given = new_layer()
    with ExitStack() as opened:
        proxies = [opened.enter_context(counting_proxy(each.target)) for each in servers]
        client = opened.enter_context(convserve.Client([each.target for each in proxies]))
        reach_both(client, proxies)
        layer = client.put(given)
        proxies[0].close()
        for _ in range(CALLS):
            np.testing.assert_array_equal(layer(X), expected(given))
