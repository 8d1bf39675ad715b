"""What many callers hold together, each within its share, leaves threads and connections to others."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest

from convserve import Client
from convserve.v1.convolution_service_pb2 import EchoRequest
from tests.support.observability.scrapes import page
from tests.support.raw.calls import RawCaller, conv2d, convolve_request, layer, tensor, weights
from tests.support.raw.streams import Feed, start
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.waiting import eventually

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]


@pytest.fixture
def stranger() -> Any:
    """Connects one more caller to a server."""
    with ExitStack() as opened:

        def another(server: RunningServer) -> RawCaller:
            return RawCaller(opened.enter_context(grpc.insecure_channel(server.target, OWN_CONNECTION)))

        yield another


def taken(server: RunningServer) -> float:
    """Returns how many calls wait, or are computed."""
    found = re.findall(r"^convserve_(?:waiting|running)_calls (\S+)", page(server.metrics), re.MULTILINE)
    return sum(map(float, found))


def test_streams_and_calls_that_wait_leave_threads_for_the_health(stranger: Callable[..., RawCaller]) -> None:
    kernel, size = np.ones((41, 41, 1, 16), "f4"), {"height": 41, "width": 41}
    config = conv2d(filters=16, kernel_size=size)
    slow = convolve_request(layer(config, weights=weights(kernel)), input=tensor(np.ones((1, 1000, 1000, 1), "f4")))
    flags = ("--handler-threads", "2", "--max-waiting-calls", "4", "--metrics", "127.0.0.1:0")
    with numpy_server(*flags) as server, ExitStack() as opened:
        streams = []
        for _ in range(4):
            feed = Feed(start())
            opened.callback(feed.end)
            streams.append(stranger(server).stub.ConvolveStream(iter(feed), timeout=600))
            streams[-1].initial_metadata()
        calls = []
        for number in range(1, 6):  # one after the other, as few may be without their message
            calls.append(stranger(server).stub.Convolve.future(slow, timeout=600))
            eventually(lambda number=number: taken(server) == number)
        stranger(server).check_health()
        assert not any(each.done() for each in calls)
        assert all(each.is_active() for each in streams)


def test_a_burst_of_one_caller_may_be_without_its_messages_for_a_moment(stranger: Callable[..., RawCaller]) -> None:
    with numpy_server("--handler-threads", "1", "--max-waiting-calls", "1") as server:
        caller, ends = stranger(server), threading.Event()
        method = caller.channel.stream_unary("/convserve.v1.ConvolutionService/GetServerInfo")
        calls = [method.future(iter(ends.wait, True), timeout=600) for _ in range(63)]
        caller.check_health()
        assert not any(call.done() for call in calls)
        ends.set()
        assert {call.exception().code() for call in calls} == {grpc.StatusCode.INVALID_ARGUMENT}


def begun(call: Any) -> Any:
    """Returns a call whose answer is on its way; None if its new connection was closed first."""
    try:
        call.initial_metadata()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None
    return call


def test_answers_that_nobody_fetches_keep_no_connection(stranger: Callable[..., RawCaller]) -> None:
    with numpy_server("--max-connections", "4") as server:
        echo, calls = EchoRequest(output_bytes=2**20).SerializeToString(), []
        for _ in range(12):  # as many as gRPC may have
            several = stranger(server).channel.stream_stream("/convserve.v1.ConvolutionService/Echo")
            calls.append(eventually(lambda several=several: begun(several(iter([echo]), timeout=600))))
        with Client(server.target, timeout=60) as client:
            assert client.info().version
