"""Stored layers that servers lose, cannot keep, or are slow about: the client goes on, within its timeout."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest

import convserve
from convserve import (
    Conv2D,
    DeadlineExceededError,
    Layer,
    LayerNotFoundError,
    OverloadedError,
    RetryRule,
    TooLargeError,
)
from convserve._rpc import requests as _rpc
from convserve._rpc import retries
from convserve.protocol.status import to_status
from tests.support.either_client import EITHER_CLIENT
from tests.support.servers.server_process import RunningServer, numpy_server

CONFIG = Conv2D(6, 3, data_format="channels_last", dtype="float32", kernel_initializer="he_normal")
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype("f4")
BIAS = np.arange(6, dtype="f4")
X = np.random.default_rng(1).normal(size=(2, 7, 7, 4)).astype("f4")

EITHER = pytest.mark.parametrize("make_client", EITHER_CLIENT.values(), ids=EITHER_CLIENT)


@pytest.fixture(params=EITHER_CLIENT.values(), ids=EITHER_CLIENT)
def client(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Any]:
    with request.param(server.target) as connected:
        yield connected


def test_drawn_weights_that_are_lost_are_drawn_again(client: Any) -> None:
    layer = client.put(CONFIG, input_channels=4)
    expected = layer(X)
    client.delete(layer)
    np.testing.assert_array_equal(layer(X), expected)
    client.delete(layer)
    assert layer.weights()[0].shape == (3, 3, 4, 6)
    found = client.put(CONFIG, input_channels=4, seed=3)
    client.delete(found)
    assert found.weights()[0].shape == (3, 3, 4, 6)


def test_given_weights_that_this_client_never_had_are_lost(client: Any) -> None:
    name = f"again/{uuid4().hex}"
    client.put(CONFIG, KERNEL, BIAS, name=name)
    found = client.layer(name)
    client.delete(found)
    for lost in (lambda: found(X), found.weights, lambda: found.update_weights(KERNEL, BIAS)):
        with pytest.raises(LayerNotFoundError, match=found.digest.hex()):
            lost()
    assert client.missing([Layer(CONFIG, KERNEL, BIAS)])


def test_a_layer_that_is_gone_is_updated_too(client: Any) -> None:
    name = f"again/{uuid4().hex}"
    for layer in (client.put(CONFIG, KERNEL, BIAS, name=name), client.put(CONFIG, input_channels=4, name=name)):
        client.delete(layer)
        updated, _ = layer.update_weights(2 * KERNEL, BIAS)
        assert updated.digest == Layer(CONFIG, 2 * KERNEL, BIAS).digest == client.layer(name).digest


def test_a_server_without_room_computes_all_the_same() -> None:
    """In RemoteConv2D too, which puts its weights by itself."""
    from convserve.keras import RemoteConv2D

    with numpy_server("--layer-memory-bytes", "20000") as small, convserve.Client(small.target) as client:
        client.put(Conv2D(1, 1), input_channels=3000, name="fills/it")
        for filters, refusal in ((600, OverloadedError), (6000, TooLargeError)):
            config = Conv2D(filters, 1, use_bias=False, data_format="channels_last", dtype="float32")
            kernel = np.ones((1, 1, 4, filters), "f4")
            with pytest.raises(refusal):
                client.put(config, kernel)
            remote = RemoteConv2D(filters, 1, use_bias=False, kernel_initializer="ones", server=small.target)
            for _ in range(2):
                y = np.asarray(remote(X))
                np.testing.assert_allclose(y[..., 0], X.sum(axis=-1), rtol=1e-4, atol=1e-5)


def test_weights_of_2_gib_cannot_go_with_a_call_though_they_were_put(
    monkeypatch: pytest.MonkeyPatch, server: RunningServer
) -> None:
    with convserve.Client(server.target) as client:
        request = _rpc.convolve_request(client.put(CONFIG, KERNEL, BIAS), X, None)
        monkeypatch.setattr(_rpc, "_MAX_MESSAGE_BYTES", KERNEL.nbytes)
        with pytest.raises(TooLargeError, match=rf"2 GiB.*Received {KERNEL.nbytes} bytes: make room for them"):
            request.carrying_layers()


# Timeouts


class SlowServer:
    """Holds no layer; answers so many calls, and none after these."""

    def __init__(self, answers: int) -> None:
        self.remaining: list[float] = []  # seconds that each call had left when it came
        self.answers = answers
        self.pool = ThreadPoolExecutor(8)
        self.server = grpc.server(self.pool)
        self.server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, call: Any) -> Any:
        if not call.method.startswith("/convserve."):
            return None  # clients of several servers ask for their health, too
        return grpc.stream_stream_rpc_method_handler(self.put if call.method.endswith("PutLayer") else self.refuse)

    def refuse(self, _: Any, context: Any) -> Iterator[bytes]:
        self.hold(context)
        context.abort_with_status(to_status(LayerNotFoundError("put it", layer="x")))
        yield b""

    def put(self, requests: Any, context: Any) -> Iterator[bytes]:
        self.hold(context)
        context.send_initial_metadata((("convserve-weights", "held"),))
        list(requests)
        yield b""

    def hold(self, context: Any) -> None:
        """Lets a call that is not answered wait until it has ended."""
        self.remaining.append(context.time_remaining())
        ended = threading.Event()
        if len(self.remaining) > self.answers and context.add_callback(ended.set):
            ended.wait(30)


@EITHER
@pytest.mark.parametrize("answers", [0, 1])
def test_one_timeout_holds_for_all_that_a_call_takes(make_client: Any, answers: int) -> None:
    from convserve._async.stored_layer import AsyncStoredLayer
    from convserve._sync.stored_layer import StoredLayer

    local = Layer(CONFIG, KERNEL, BIAS)
    parts: dict[str, Any] = {"digest": local.digest, "config": CONFIG, "kernel_shape": KERNEL.shape, "local": local}
    for timeout in (0.2 + 0.8 * answers, 20.0):  # the latter where a busy machine does not come so far in time
        slow = SlowServer(answers)
        with make_client([slow.target] * 2, shared_memory=False) as client:
            made = client._wrapped if hasattr(client, "_wrapped") else client
            layer = (AsyncStoredLayer if made is not client else StoredLayer)(made, **parts)
            with pytest.raises(DeadlineExceededError, match=f"within timeout={timeout:g} seconds"):
                client.convolve([layer], X, timeout=timeout)
        slow.server.stop(None).wait()
        if len(slow.remaining) > answers:
            break
    assert len(slow.remaining) == answers + 1
    assert slow.remaining == sorted(slow.remaining, reverse=True)


@EITHER
def test_a_put_that_takes_too_long_to_send_says_so(server: RunningServer, make_client: Any) -> None:
    large = Layer(Conv2D(1024, 1, use_bias=False), np.zeros((1, 1, 2**14, 1024), "f4"))
    with make_client(server.target) as client:
        for _ in range(3):
            with pytest.raises(DeadlineExceededError, match=r"timeout=0\.02 seconds"):
                client.put(large, timeout=0.02)


def test_a_call_that_breaks_off_when_its_time_is_up_is_told_as_that() -> None:
    call = retries.Call(RetryRule(), retries.Deadline(1e-9), retries.RetryBudget(RetryRule()))
    with pytest.raises(DeadlineExceededError):
        call.delay_after(convserve.UnavailableError("the call ended in the middle"))


def test_a_call_does_not_wait_longer_than_it_may_for_another_ones_put(server: RunningServer) -> None:
    with convserve.Client(server.target) as client:
        layer = client.put(CONFIG, KERNEL, BIAS)
        expected = layer(X)
        client.delete(layer)
        lock = client._upload_locks[layer.digest] = threading.Lock()
        with lock, pytest.raises(DeadlineExceededError):
            layer(X, timeout=0.5)
        # In a process that was forked just then nobody will ever release it.
        lock.acquire()
        client._home = -1
        np.testing.assert_array_equal(layer(X, timeout=20), expected)


def test_many_threads_and_few_layers_in_memory_never_fail(tmp_path: Any) -> None:
    kernels = [np.full((3, 3, 4, 6), number, "f4") for number in range(6)]
    with numpy_server("--layer-memory-bytes", "12000") as small, convserve.Client(small.target) as client:
        layers = [Layer(CONFIG.replace(use_bias=False), each) for each in kernels]

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                layer = layers[rng.integers(6)]
                assert client.put(layer).digest == layer.digest

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))  # which raises what a thread raised
        assert client.info().usage.evictions > 10
