"""Direct calls at their edges: who calls, callers that leave, threads that are all busy, and the server's stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import grpc
import numpy as np
import pytest

import convserve
from convserve.v1.convolution_service_pb2 import EchoRequest
from convserve_server.app import _direct_calls
from convserve_server.auth.identity import READ, Identity, authenticate, caller_of, may
from convserve_server.direct_calls import DirectCalls
from convserve_server.observability.interceptor import ObservingInterceptor
from convserve_server.transport.idle_timeouts import IdleTimeouts
from tests.conftest import RunningServer, running_server
from tests.integration.observability.test_interceptor import Kept
from tests.support.in_process_servers import PATH, served_directly
from tests.support.raw.calls import checked, raw_caller
from tests.support.raw.inference import inference_caller, output_of, raw_request
from tests.support.waiting import eventually

Method = Callable[[bytes, Any, Callable[[Callable[[], bytes]], None]], None]


class Alice:
    """A gate through which all come in under the name of Alice, who may read; unless it fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def check(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error
        authenticate(Identity("alice", frozenset({READ})))


def served(
    method: Method, *gates: Any, most_threads: int = 8, kept: Kept | None = None
) -> AbstractContextManager[tuple[grpc.Channel, DirectCalls]]:
    """Serves a method that is given its request's bytes."""
    observing = ObservingInterceptor([PATH], [] if kept is None else [kept])
    return served_directly(
        bytes, method, *gates, observing=observing, silence=IdleTimeouts(60), most_threads=most_threads
    )


@pytest.mark.parametrize("later", [False, True])
def test_whoever_answers_knows_who_calls_and_what_it_may_do(later: bool) -> None:
    def method(request: bytes, context: Any, reply: Any) -> None:
        def make() -> bytes:
            return f"{caller_of(context)} {may(READ)} {may('change')}".encode()

        if later:
            threading.Thread(target=reply, args=(make,)).start()
        else:
            reply(make)

    with served(method, Alice()) as (channel, _):
        assert channel.unary_unary(PATH)(b"", timeout=60) == b"token:alice True False"


def test_a_gate_that_fails_is_a_defect_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with served(lambda *_: None, Alice(OSError("a disk"))) as (channel, _):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(PATH)(b"", timeout=60)
        checked(caught.value, grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "a disk" in caplog.text


def test_callers_that_leave_at_once_leave_nothing_behind() -> None:
    with served(lambda request, _, reply: reply(lambda: request)) as (channel, _):
        for number in range(300):
            call = channel.unary_unary(PATH).future(b"x" * number, timeout=60)
            call.cancel()
        assert channel.unary_unary(PATH)(b"there", timeout=60) == b"there"


@pytest.mark.parametrize("code", ["CANCELLED", "DEADLINE_EXCEEDED"])
def test_who_leaves_before_its_request_is_there_is_told_as_one_who_left(code: str) -> None:
    kept, released = Kept(), threading.Event()

    def no_message() -> Iterator[bytes]:
        released.wait(60)
        yield from ()

    with served(lambda *_: None, kept=kept) as (channel, _):
        for _ in range(5):
            call = channel.stream_stream(PATH)(no_message(), timeout=60 if code == "CANCELLED" else 0.3)
            before = len(kept.calls)
            if code == "CANCELLED":
                eventually(lambda: kept.words and kept.words[-1][0] == "began")
                call.cancel()
            eventually(lambda before=before: len(kept.calls) > before)
        released.set()
    assert [each.code for each in kept.calls] == [code] * 5
    assert [each.reason for each in kept.calls] == [""] * 5


@pytest.mark.parametrize("most_threads", [2, 3])
def test_the_end_of_calls_is_heard_while_all_threads_that_there_may_be_are_busy(most_threads: int) -> None:
    busy = []

    def method(request: bytes, context: Any, reply: Any) -> None:
        gone = threading.Event()
        if not context.add_callback(gone.set):
            gone.set()
        busy.append(gone)
        assert gone.wait(30)
        reply(lambda: request)

    with served(method, most_threads=most_threads) as (channel, _):
        calls = [channel.unary_unary(PATH).future(b"", timeout=60) for _ in range(5)]
        eventually(lambda: len(busy) == most_threads - 1)
        for call in calls:
            call.cancel()
        eventually(lambda: all(each.is_set() for each in busy))


def test_one_thread_alone_handles_calls_one_after_the_other() -> None:
    with served(lambda request, _, reply: reply(lambda: request), most_threads=1) as (channel, _):
        calls = [channel.unary_unary(PATH).future(bytes([number]), timeout=60) for number in range(20)]
        assert [each.result() for each in calls] == [bytes([number]) for number in range(20)]


def test_only_so_many_requests_are_received_at_once() -> None:
    received: list[bytes] = []
    replies: list[Callable[[], None]] = []

    def method(request: bytes, _: Any, reply: Any) -> None:
        received.append(request)
        replies.append(lambda: reply(lambda: request))

    kept = Kept()
    with served(method, most_threads=2, kept=kept) as (channel, direct):
        calls: list[Any] = []
        for number in range(5):
            calls.append(channel.unary_unary(PATH).future(bytes([number]), timeout=60))
            eventually(lambda: len(received) + len(direct._outside) == len(calls))
        assert len(received) == 2
        calls[2].cancel()
        eventually(lambda: len(kept.calls) == 1)  # the server knows: else it would be let in, and replied to
        for number in range(4):
            eventually(lambda number=number: len(replies) > number)
            replies[number]()
        assert [calls[number].result() for number in (0, 1, 3, 4)] == [bytes([number]) for number in (0, 1, 3, 4)]


def test_a_version_of_grpc_without_such_a_core_leaves_the_methods_to_the_ordinary_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Observability:
        interceptor = ObservingInterceptor([], [])

    assert _direct_calls(object(), Observability(), [], IdleTimeouts(60), 2) is None  # type: ignore[arg-type]
    assert "this version of gRPC" in caplog.text


def test_a_server_with_direct_calls_answers_as_others_do(server: RunningServer) -> None:
    x = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
    with running_server("--direct-calls") as direct:
        with convserve.Client(direct.target, shared_memory=False) as client:
            layer = client.put(convserve.Conv2D(4, 3, data_format="channels_last"), input_channels=3, seed=0, name="it")
            expected = layer(x)
            kernel, bias = layer.weights()
            with convserve.Client(server.target, shared_memory=False) as other:
                np.testing.assert_array_equal(other.put(layer.config, kernel=kernel, bias=bias)(x), expected)
            with pytest.raises(convserve.InvalidArgumentError):
                layer(x[..., :2])
        with inference_caller(direct.target) as caller:
            np.testing.assert_array_equal(output_of(caller.infer(raw_request("it", x=x))), expected)
        with raw_caller(direct.target) as raw:
            assert len(raw.stub.Echo(EchoRequest(output_bytes=7), timeout=60).payload) == 7
        assert direct.stop() == 0
