"""Errors by every way that tensors travel: the same class, whichever way it was."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D, Layer
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.tensor_paths import WAYS, Taken

LAST = {"data_format": "channels_last"}
KERNEL = np.ones((3, 3, 2, 4), "f4")
LAYER = Layer(Conv2D(4, 3, use_bias=False, **LAST), KERNEL)
X = np.ones((2, 5, 5, 2), "f4")
EveryWay = Callable[[Callable[[Any], Any]], dict[str, Any]]


def refusal(call: Callable[[], Any]) -> convserve.ConvserveError:
    with pytest.raises(convserve.ConvserveError) as caught:
        call()
    return caught.value


def test_weights_that_the_server_refuses(every_way: EveryWay) -> None:
    def call(client: Any) -> Any:
        client.convolve(LAYER, X)
        stored = client.put(LAYER, name=f"paths/{id(client)}")
        (stored._wrapped if hasattr(stored, "_wrapped") else stored).kernel_shape = (
            3,
            3,
            3,
            4,
        )  # the client believes it
        return refusal(lambda: stored(np.ones((2, 5, 5, 3), "f4")))

    for error in every_way(call).values():
        assert type(error) is convserve.InvalidWeightsError
        assert [each.field for each in error.violations] == ["input"]


def test_a_call_that_is_too_large_for_the_server(every_way: EveryWay) -> None:
    """By far: neither end has memory for it, and neither tries."""
    x = np.ones((1, 64, 64, 1), "f4")

    def call(client: Any) -> Any:
        client.conv2d(x, 1, 1, **LAST)
        return refusal(lambda: client.convolve(Conv2D(2**22, 1, **LAST), x))

    for way, error in every_way(call).items():
        assert type(error) is convserve.TooLargeError, way
        assert ("--max-call-bytes" if way.startswith("pieces") else "--max-message-bytes") in str(error)
        assert [each.field for each in error.violations] == ["input"]


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_batch_that_is_too_large_goes_sample_by_sample(make_client: Any, way: Any) -> None:
    x, out = np.random.default_rng(0).random((5, 40, 40, 3), "f4"), np.empty((5, 38, 38, 4), "f4")
    layer = Layer(Conv2D(4, 3, use_bias=False, **LAST), np.ones((3, 3, 3, 4), "f4"))
    with (
        numpy_server("--max-call-bytes", "100000", "--shared-memory") as small,
        way.forced(),
        make_client(small.target, shared_memory=way.shares) as client,
    ):
        assert [client.plan(layer, each.shape).admitted for each in (x, x[:1])] == [False, True]
        result = client.convolve(layer, x, out=out)
        assert result.output is out
        np.testing.assert_array_equal(out, np.concatenate([client.convolve(layer, each[None]).output for each in x]))
        np.testing.assert_array_equal(client.convolve(client.put(layer), x).output, out)
        penalty = Layer(layer.config.replace(activity_regularizer="l2"), layer.kernel)  # which is of the whole batch
        for refused in (lambda: client.convolve(penalty, x), lambda: client.convolve(layer, np.ones((2, 99, 99, 3)))):
            assert type(refusal(refused)) is convserve.TooLargeError


@pytest.fixture(scope="module")
def two_at_once() -> Iterator[RunningServer]:
    """A server that takes two images of POINTWISE in one item, and twelve items in a stream."""
    with numpy_server("--max-call-bytes", "7000", "--max-items-per-stream", "12") as running:
        yield running


POINTWISE = Layer(Conv2D(1, 1, use_bias=False, **LAST), np.ones((1, 1, 3, 1), "f4"))


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_batch_is_divided_so_that_it_is_taken(make_client: Any, two_at_once: RunningServer, taken: Taken) -> None:
    x, out = np.random.default_rng(0).random((20, 10, 10, 3), "f4"), np.empty((20, 10, 10, 1), "f4")
    with make_client(two_at_once.target) as client:
        layer = client.put(POINTWISE)
        assert client.convolve(layer, x, out=out).output is out
        np.testing.assert_allclose(out, x.sum(axis=-1, keepdims=True), rtol=1e-6)
        assert taken.items == [10]  # of 2 images each
        np.testing.assert_array_equal(layer(x), out)
        assert taken.items == [10, 10]  # a stored layer begins with what was taken


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_batch_of_samples_that_are_too_large_is_refused(
    make_client: Any, two_at_once: RunningServer, taken: Taken
) -> None:
    x = np.ones((4, 30, 30, 3), "f4")
    with make_client(two_at_once.target) as client:
        error = refusal(lambda: client.convolve(POINTWISE, x))
        assert (type(error), taken.items) == (convserve.TooLargeError, [4])
        with WAYS["pieces"].forced():
            refusal(lambda: client.convolve(POINTWISE, x))
        assert taken.items == [4, 4]  # one sample in each at first, than which there is no less


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_batch_is_not_divided_where_the_layer_is_what_is_too_large(
    make_client: Any, two_at_once: RunningServer, taken: Taken
) -> None:
    large = Layer(Conv2D(2000, 1, use_bias=False, **LAST), np.ones((1, 1, 3, 2000), "f4"))
    with make_client(two_at_once.target) as client:
        error = refusal(lambda: client.convolve(large, np.ones((64, 1, 1, 3), "f4")))
    assert ([each.field for each in error.violations], taken.items) == (["layers"], [])
    assert "the server's --max-call-bytes" in str(error)
    assert "take a smaller layer" in str(error)


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_the_weights_that_a_call_carries_are_to_fit_into_a_message(make_client: Any, taken: Taken) -> None:
    small, large = (Layer(Conv2D(n, 1, use_bias=False, **LAST), np.ones((1, 1, 512, n), "f4")) for n in (1500, 2500))
    with (
        numpy_server("--max-message-bytes", "4MiB") as running,
        make_client(running.target, shared_memory=False) as client,
    ):
        assert client.convolve(small, np.ones((1, 25, 25, 512), "f4")).output.shape == (1, 25, 25, 1500)
        assert taken.items == [1]  # which is not divided, but goes in pieces after the weights
        for samples, items in ((64, [1]), (2500, [1, 1])):
            x = np.ones((samples, 1, 1, 512), "f4")
            error = refusal(lambda x=x: client.convolve(large, x))
            assert ([each.field for each in error.violations], taken.items) == (["layers"], items)
            assert "put the layers, and call what `put` returns" in str(error)
            assert client.convolve(client.put(large), x).output.shape == (samples, 1, 1, 2500)
            del taken.items[1:]


def test_a_division_that_is_refused_is_not_what_is_told(two_at_once: RunningServer, taken: Taken) -> None:
    # With a blocking client: grpc.aio may lose why a server ended a stream that is still being sent ("Internal error
    # from Core"), which is then tried again as any call that broke off.
    with convserve.Client(two_at_once.target) as client:
        error = refusal(lambda: client.convolve(POINTWISE, np.ones((60, 10, 10, 3), "f4")))
    assert taken.items[-1] > 12
    assert type(error) is convserve.TooLargeError
    assert "Received a call with 192024" in str(error)  # the whole batch, where the client has chosen the items


def test_a_layer_that_nobody_has(every_way: EveryWay) -> None:
    def call(client: Any) -> Any:
        client.put(Layer(LAYER.config, np.random.default_rng().normal(size=KERNEL.shape)), name=f"paths/{id(client)}")
        found = client.layer(f"paths/{id(client)}")
        client.delete(found)
        return refusal(lambda: found(X))

    assert {type(error) for error in every_way(call).values()} == {convserve.LayerNotFoundError}


def test_a_deadline(every_way: EveryWay) -> None:
    config = Conv2D(16, 4, use_bias=False, padding="same", **LAST)
    wide = config.replace(padding=((200, 200), (200, 200)))
    slow = [Layer(each, np.ones((4, 4, 16, 16), "f4")) for each in (wide, *[config] * 4, config.replace(strides=64))]
    x = np.ones((2, 8, 8, 16), "f4")

    def call(client: Any) -> Any:
        answered = client.convolve(slow, x)  # and so everything is connected and traced
        error = refusal(lambda: client.convolve(slow, x, timeout=0.01))
        np.testing.assert_array_equal(client.convolve(slow, x).output, answered.output)
        return error

    for error in every_way(call).values():
        assert type(error) is convserve.DeadlineExceededError
        assert str(error).startswith("Expected an answer within timeout=0.01 seconds. Received none")


@pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def test_a_server_that_is_not_there(make_client: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        for way in WAYS.values():
            target = f"127.0.0.1:{taken.getsockname()[1]}"
            once = convserve.RetryRule(attempts=1)
            with way.forced(), make_client(target, shared_memory=way.shares, retry=once) as client:
                error = refusal(lambda client=client: client.convolve(LAYER, X))
            assert type(error) is convserve.UnavailableError
