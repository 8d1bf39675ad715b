"""A layer's weights cross the wire once: counted in bytes between client and server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, InvalidRequestError, Layer, LayerNotFoundError, RetryRule, UnavailableError
from convserve.protocol import layer_messages
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.counting_proxy import CountingProxy, counting_proxy
from tests.support.servers.server_process import RunningServer

CALLS = 20
SMALL = 20_000  # heads of messages, settings and acknowledgements of connections
CONFIG = Conv2D(2048, 1, use_bias=False, data_format="channels_last", dtype="float32")
X = np.ones((1, 10, 10, 512), "f4")


@pytest.fixture
def proxy(server: RunningServer) -> Iterator[CountingProxy]:
    with counting_proxy(server.target) as opened:
        yield opened


@pytest.fixture
def layer() -> Layer:
    """4 MiB of weights that no server has seen."""
    return Layer(CONFIG, np.random.default_rng().normal(size=(1, 1, 512, 2048)).astype("f4"))


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_weights_are_sent_with_the_put_and_with_no_call(proxy: CountingProxy, layer: Layer, make_client: Any) -> None:
    weights, inputs = layer.kernel.nbytes, CALLS * X.nbytes
    with make_client(proxy.target) as client:
        stored = client.put(layer)
        assert weights < proxy.sent_bytes < weights + SMALL
        for _ in range(CALLS):
            stored(X)
        assert weights + inputs < proxy.sent_bytes < 1.1 * (weights + inputs)
        client.convolve([stored, Conv2D(1, 1)], X)
        client.plan(stored, X.shape)
        assert proxy.sent_bytes < 1.1 * (weights + inputs + X.nbytes)


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_what_the_server_holds_is_not_sent_again(proxy: CountingProxy, layer: Layer, make_client: Any) -> None:
    with make_client(proxy.target) as client:
        first = client.put(layer)
    sent = proxy.sent_bytes
    with make_client(proxy.target) as client:
        again = client.put(CONFIG, kernel=layer.kernel, name="wire/again")
        assert again.digest == first.digest
        assert client.missing([layer]) == []
        client.delete("wire/again")
    assert proxy.sent_bytes < sent + SMALL


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_layer_that_is_gone_is_sent_once_more_and_the_call_goes_on(
    proxy: CountingProxy, layer: Layer, make_client: Any
) -> None:
    with make_client(proxy.target) as client:
        stored = client.put(layer)
        expected = stored(X)
        client.delete(stored)
        sent = proxy.sent_bytes
        for _ in range(CALLS):
            np.testing.assert_array_equal(stored(X), expected)
        # The first call is sent twice: without the weights, and then with them.
        assert proxy.sent_bytes < 1.1 * (sent + layer.kernel.nbytes + (CALLS + 1) * X.nbytes)


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_weights_are_read_once(proxy: CountingProxy, layer: Layer, make_client: Any) -> None:
    with make_client(proxy.target) as client:
        client.put(layer, name="wire/read")
        found = client.layer("wire/read")
        for _ in range(3):
            assert found.weights()[0].shape == (1, 1, 512, 2048)
        assert layer.kernel.nbytes < proxy.received_bytes < layer.kernel.nbytes + SMALL
        client.delete(found)


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_weights_that_are_refused_are_not_sent(
    proxy: CountingProxy, layer: Layer, make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so the refusal, which may come while a caller still sends, always reaches it."""
    monkeypatch.setattr(layer_messages, "check_name", lambda _: None)  # so that the server checks it
    with make_client(proxy.target) as client:
        for _ in range(20):
            with pytest.raises(InvalidRequestError, match=r"^name: Expected"):
                client.put(layer, name="no name")
        client.put(Conv2D(1, 1, use_bias=False), kernel=np.ones((1, 1, 1, 1), "f4"), name="wire/refused")
        held = client.layer("wire/refused")
        client.delete("wire/refused")
        for _ in range(20):
            with pytest.raises(LayerNotFoundError):
                held.update_weights(np.ones((1, 1, 2**20, 1), "f4"))
    assert proxy.sent_bytes < 2 * SMALL


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_put_that_is_cut_off_says_so_and_can_be_sent_again(server: RunningServer, make_client: Any) -> None:
    big = Layer(CONFIG, np.random.default_rng().normal(size=(1, 1, 2**13, 2048)).astype("f4"))
    with counting_proxy(server.target) as proxy, make_client(proxy.target, retry=RetryRule(attempts=1)) as client:
        proxy.close_after(2**22)
        with pytest.raises(UnavailableError):
            client.put(big)
    with make_client(server.target) as client:
        assert client.missing([big]) == [big]
        assert client.put(big).digest == big.digest
        client.delete(client.put(big))
