"""Two servers behind one client: a layer is put once, and called on both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.counting_proxy import CountingProxy, counting_proxy
from tests.support.servers.server_process import RunningServer, numpy_server

CALLS = 20
RNG = np.random.default_rng()
CONFIG = Conv2D(2048, 1, use_bias=False, data_format="channels_last", dtype="float32")
X = np.ones((1, 2, 2, 512), "f4")
WEIGHT_BYTES = 512 * 2048 * 4


@pytest.fixture(scope="module")
def servers() -> Iterator[list[RunningServer]]:
    with numpy_server() as first, numpy_server() as second:
        yield [first, second]


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
    before = [each.received_bytes for each in proxies]
    while not all(each.received_bytes > start + 500 for each, start in zip(proxies, before, strict=True)):
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


def test_a_name_moves_on_one_server_which_is_given_the_layer(client: Any, servers: list[RunningServer]) -> None:
    """On the first, where callers look for it; the layer is on the other one alone."""
    name, old, new = f"moved/{RNG.integers(2**62)}", new_layer(), new_layer()
    client.put(old, name=name)
    with ExitStack() as opened:
        each = [opened.enter_context(convserve.Client(server.target)) for server in servers]
        (first,) = (one for one in each if any(name in listed.names for listed in one.layers(name)))
        (second,) = (one for one in each if one is not first)
        second.put(new)
        assert client.move(name, digest=new.digest, expect=old).digest == new.digest
        assert [one.layers(name) == [] for one in (first, second)] == [False, True]
        assert first.layer(name).digest == client.layer(name).digest == new.digest
        second.put(new, name=name)
        client.move_away(name, expect=new)
        assert [one.layers(name) for one in each] == [[], []]


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
            while not all(each.received_bytes > 500 for each in proxies):
                await client.info()
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


def test_a_layer_that_one_server_drew_is_called_on_both_by_many_threads(servers: list[RunningServer]) -> None:
    with convserve.Client([each.target for each in servers]) as client, ThreadPoolExecutor(16) as threads:
        for seed in range(6):
            layer = client.put(Conv2D(4, 1), input_channels=512, seed=seed, name="replicas/drawn")
            outputs = list(threads.map(lambda _, layer=layer: layer(X), range(16)))
            assert all(np.array_equal(each, outputs[0]) for each in outputs)
        found = list(threads.map(lambda _: client.layer("replicas/drawn").digest, range(100)))
        assert set(found) == {layer.digest}


@pytest.fixture(params=["addresses", "name"])
def both(
    request: pytest.FixtureRequest, servers: list[RunningServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A client that reaches both servers by their addresses, or by a name that leads to both."""
    targets = [each.target for each in servers]
    if request.param == "name":
        found = [(2, 1, 6, "", ("127.0.0.1", int(each.rpartition(":")[2]))) for each in targets]
        resolve = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *a, **k: found if host == "two.test" else resolve(host, *a, **k)
        )
    make = request.getfixturevalue("make_client")
    with make("two.test:1" if request.param == "name" else targets) as client:
        yield client


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_what_is_asked_of_all_servers(both: Any, servers: list[RunningServer], make_client: Any) -> None:
    with convserve.Client(servers[0].target) as first, convserve.Client(servers[1].target) as second:
        given = [Layer(Conv2D(1, 1, use_bias=False), RNG.normal(size=(1, 1, 1, 1)).astype("f4")) for _ in range(8)]
        for number, each in enumerate(given[:3]):
            first.put(each, name=f"all/first/{number}")
        for number, each in enumerate(given[2:7]):
            second.put(each, name=f"all/second/{number}")
        for _ in range(3):
            listed = both.layers("all/")
            assert [each.digest for each in listed] == sorted(each.digest for each in given[:7])
            assert {each.names for each in listed} >= {("all/first/2", "all/second/0"), ("all/second/4",)}
            assert [each.digest for each in both.missing(given)] == [given[7].digest]
            assert both.layer("all/second/4").digest == given[6].digest
        both.delete("all/first/0")
        both.delete(next(each for each in listed if each.digest == given[2].digest))
        for single in (first, second):
            assert len(single.missing([given[0], given[2]])) == 2
        with pytest.raises(convserve.LayerNotFoundError):
            both.delete("all/first/0")
        for each in both.layers("all/"):
            both.delete(each)
        assert both.layers("all/") == []


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_name_leads_to_what_was_put_last(both: Any, make_client: Any) -> None:
    for _ in range(4):
        put = both.put(Conv2D(1, 1), input_channels=1, name="replicas/moved")
        assert both.layer("replicas/moved").digest == put.digest
        updated, _ = put.update_weights(np.ones((1, 1, 1, 1)), RNG.normal(size=1))
        assert both.layer("replicas/moved").digest == updated.digest
    both.delete("replicas/moved")


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_server_that_is_away_is_passed_over(servers: list[RunningServer], make_client: Any) -> None:
    with make_client(["127.0.0.1:1", servers[0].target]) as client:
        put = client.put(new_layer(), name="replicas/away")
        assert client.layer("replicas/away").digest == put.digest
        assert [each.digest for each in client.layers("replicas/away")] == [put.digest]
        with pytest.raises(convserve.LayerNotFoundError):
            client.layer("replicas/nowhere")
        client.delete(put)
    with (
        make_client(["127.0.0.1:1", "127.0.0.1:2"], retry=convserve.RetryRule(attempts=1)) as client,
        pytest.raises(convserve.UnavailableError, match="is `convserve serve` running there"),
    ):
        client.layers()
