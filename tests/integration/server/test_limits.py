"""What a caller may take of a server at most: places, bytes, streams, connections, and time in silence."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import grpc
import numpy as np
import pytest

from convserve import Client, Conv2D, DeadlineExceededError, OverloadedError, RetryRule
from convserve.protocol.status import from_rpc_error
from convserve.v1.convolution_service_pb2 import EchoRequest
from tests.support.processes import forget_peak, status
from tests.support.raw.calls import RawCaller, checked, convolve_request, layer, raw_caller, tensor, weights
from tests.support.raw.streams import Feed, answers, image, item, opening, start
from tests.support.servers.server_process import RunningServer, numpy_server
from tests.support.waiting import eventually

ONCE = RetryRule(attempts=1)
SLOW = Conv2D(64, 15, padding="same", data_format="channels_last")
X = np.ones((1, 100, 100, 16), "f4")  # a call of a tenth of a second


@contextmanager
def bounded_server(idle_s: int) -> Iterator[RunningServer]:
    """Runs a server with small bounds."""
    bounds = {
        "idle-s": idle_s,
        "max-admitted-bytes": 400_000_000,
        "max-waiting-calls": 7,
        "handler-threads": 8,
        "max-items-per-stream": 12,
        "max-streams-per-connection": 20,
    }
    with numpy_server(*(word for name, value in bounds.items() for word in (f"--{name}", str(value)))) as running:
        yield running
        assert running.process.poll() is None, running.log.read_text()
        assert running.stop() == 0


@pytest.fixture(scope="module")
def bounded() -> Iterator[RunningServer]:
    """A server that a busy machine's pauses do not make end calls."""
    with bounded_server(idle_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningServer]:
    """A server that soon ends calls whose caller is idle."""
    with bounded_server(idle_s=2) as running:  # a busy machine's pauses are shorter
        yield running


@pytest.fixture
def caller(bounded: RunningServer) -> Iterator[RawCaller]:
    with raw_caller(bounded.target) as raw:
        yield raw
        raw.check_service()


@pytest.fixture
def idle_caller(impatient: RunningServer) -> Iterator[RawCaller]:
    with raw_caller(impatient.target) as raw:
        yield raw
        raw.check_service()


def elsewhere(server: RunningServer) -> str:
    """Returns another name of a server's address: channels to the same name in one process share a connection."""
    return server.target.replace("127.0.0.1", "localhost")


def silent() -> tuple[Iterator[bytes], threading.Event]:
    """Returns messages that never come, until an event is set."""
    released = threading.Event()

    def messages() -> Iterator[bytes]:
        released.wait(60)
        yield from ()

    return messages(), released


def test_who_begins_a_call_and_sends_nothing_is_sent_away(idle_caller: RawCaller) -> None:
    rpcs = [f"ConvolutionService/{name}" for name in ("Convolve", "ConvolveStream", "Plan")] + ["LayerService/PutLayer"]
    messages, released = zip(*(silent() for _ in rpcs), strict=True)
    are_cancelled(
        *(
            idle_caller.channel.stream_stream(f"/convserve.v1.{rpc}")(none, timeout=60)
            for rpc, none in zip(rpcs, messages, strict=True)
        )
    )
    for each in released:
        each.set()


def are_cancelled(*calls: Any) -> None:
    """Asserts that the server ends calls, after whatever it has answered."""
    for call in calls:
        with pytest.raises(grpc.RpcError) as failure:
            list(call)
        assert failure.value.code() is grpc.StatusCode.CANCELLED


def test_more_silent_calls_than_threads_hold_up_nobody_for_long(
    impatient: RunningServer, idle_caller: RawCaller
) -> None:
    messages = [silent() for _ in range(18)]  # of 8 + 7 threads
    calls = [
        idle_caller.channel.stream_stream("/convserve.v1.ConvolutionService/Convolve")(each) for each, _ in messages
    ]
    with Client(elsewhere(impatient), shared_memory=False) as polite:
        assert polite.conv2d(np.ones((1, 4, 4, 1), "f4"), 1, 1, kernel_initializer="ones").shape == (1, 4, 4, 1)
    for call, (_, released) in zip(calls, messages, strict=True):
        released.set()
        call.cancel()


def test_a_stream_that_falls_silent_is_ended(idle_caller: RawCaller) -> None:
    x = image(1)
    begun = [start(), *item(1, x), opening(2, *x.shape)]
    feeds = [Feed(*begun[:count]) for count in (1, len(begun) - 1, len(begun))]
    are_cancelled(*(idle_caller.stub.ConvolveStream(iter(each), timeout=60) for each in feeds))
    for each in feeds:
        each.end()


@pytest.mark.parametrize("then", ["sends", "sends nothing", "closes"])
def test_a_stream_whose_answers_nobody_fetches_is_ended_whatever_its_caller_sends(
    impatient: RunningServer, idle_caller: RawCaller, then: str
) -> None:
    x = np.ones((16, 500, 500, 2), "f4")
    wide = layer(weights=weights(np.ones((1, 1, 2, 8))))
    wide.inline.conv2d.filters = 8
    feed = Feed(start(wide), *item(1, x))
    call = idle_caller.stub.ConvolveStream(iter(feed), timeout=60)
    before = impatient.log.read_text().count("idle for too long")
    next(call)  # what follows is sent while the answer waits to be fetched
    if then == "sends":
        feed.send(opening(2, *image(1).shape))
    elif then == "closes":
        feed.end()
    eventually(lambda: impatient.log.read_text().count("idle for too long") > before)
    are_cancelled(call)
    feed.end()


def test_one_caller_has_half_of_the_streams_that_are_left(bounded: RunningServer, caller: RawCaller) -> None:
    feeds = [Feed(start()) for _ in range(10)]
    calls = [caller.stub.ConvolveStream(iter(each), timeout=60) for each in feeds]
    refused = eventually(lambda: len(done := [each for each in calls if not each.is_active()]) == 6 and done)
    for each in refused:
        text, _ = checked(each, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert "4 of 7 are open, 4 of them yours" in text
        assert from_rpc_error(each).retry_after_s > 0
    with raw_caller(elsewhere(bounded)) as other:
        assert list(answers(other.stub.ConvolveStream(iter([start(), *item(1, image(1))]), timeout=60))) == [1]
    for each in feeds:
        each.end()


def test_items_of_a_stream_are_bounded(caller: RawCaller) -> None:
    messages = [start(), *(message for number in range(13) for message in item(number, image(number)))]
    received = []
    with pytest.raises(grpc.RpcError) as failure:
        received.extend(caller.stub.ConvolveStream(iter(messages), timeout=60))
    text, _ = checked(failure.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "Expected at most 12 items, the server's --max-items-per-stream" in text


def test_further_connections_take_the_place_of_idle_ones_but_not_of_those_with_calls() -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with numpy_server("--max-connections", "2") as server, ExitStack() as opened:
        channels = [opened.enter_context(grpc.insecure_channel(server.target, own_connection)) for _ in range(20)]
        for channel in channels:  # each of them could be called and is idle then
            eventually(lambda channel=channel: can_call(channel))
        opened_streams = [eventually(lambda channel=channel: open_stream(channel)) for channel in channels[:2]]
        feeds, streams = zip(*opened_streams, strict=True)
        for channel in channels[2:]:
            eventually(lambda channel=channel: can_call(channel))
        assert all(each.is_active() for each in streams)
        for feed in feeds:
            feed.end()


def open_stream(channel: grpc.Channel) -> tuple[Feed, Any] | None:
    """Returns a stream whose first item is answered, and what feeds it; None if its new connection was closed first."""
    feed = Feed(start(), *item(1, image(1)))
    stream = RawCaller(channel).stub.ConvolveStream(iter(feed), timeout=60)
    try:
        return (feed, stream) if next(stream) else None
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None


def can_call(channel: grpc.Channel) -> bool:
    """Returns whether a call on a channel is answered."""
    try:
        RawCaller(channel).check_service()
    except grpc.RpcError:
        return False
    return True


def test_metadata_is_bounded(caller: RawCaller) -> None:
    request = convolve_request(layer(weights=weights(np.ones((1, 1, 1, 1)))))
    with pytest.raises(grpc.RpcError) as failure:
        caller.stub.Convolve(request, metadata=[("x-long", "a" * 20_000)], timeout=60)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_would_swell_is_refused_before_it_does(bounded: RunningServer, method: Any) -> None:
    x = np.zeros((1, 5_000, 10_000, 1), "f4")
    bomb = convolve_request(layer(weights=weights(np.ones((1, 1, 1, 1)))), input=tensor(x))
    before = status(bounded.process.pid, "VmRSS")
    with grpc.insecure_channel(bounded.target, [("grpc.max_send_message_length", -1)], compression=method) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            RawCaller(channel).stub.Convolve(bomb, timeout=60)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert status(bounded.process.pid, "VmRSS") - before < x.nbytes / 4


# Places and bytes


class Crowd:
    """Calls at once that each take a while."""

    def __init__(self, client: Client, number: int, **options: Any) -> None:
        self.pool = ThreadPoolExecutor(number)
        self.calls = [self.pool.submit(client.convolve, SLOW.with_seed(0), X, **options) for _ in range(number)]

    def refused(self) -> list[BaseException]:
        return [each.exception() for each in self.calls if each.done() and each.exception()]


def test_who_sends_too_much_at_once_is_told_when_to_come_again_and_others_are_served(bounded: RunningServer) -> None:
    with (
        Client(bounded.target, retry=ONCE, shared_memory=False) as greedy,
        Client(elsewhere(bounded), retry=ONCE, shared_memory=False) as polite,
    ):
        crowd = Crowd(greedy, 12, batching=False)
        eventually(crowd.refused)
        assert polite.conv2d(np.ones((1, 4, 4, 1), "f4"), 1, 1, kernel_initializer="ones").shape == (1, 4, 4, 1)
        crowd.pool.shutdown()
    assert 1 <= len(crowd.refused()) < 12
    for error in crowd.refused():
        assert type(error) is OverloadedError
        assert error.retry_after_s > 0
        assert re.search("--max-waiting-calls|one more stream", str(error))


def test_with_retries_everybody_is_served_in_the_end(bounded: RunningServer) -> None:
    with Client(bounded.target, retry=RetryRule(attempts=1000), shared_memory=False) as client:
        crowd = Crowd(client, 12)
        outputs = [each.result().output for each in crowd.calls]
        assert all(np.array_equal(outputs[0], each) for each in outputs)


def test_calls_that_do_not_fit_together_wait_for_each_other(bounded: RunningServer) -> None:
    x = np.ones((4, 1000, 1000, 4), "f4")  # 224 MB with the output and the step between, of 400
    patient = RetryRule(attempts=1000)  # the server may be overloaded for a second yet, by calls of before
    with Client(bounded.target, retry=patient, shared_memory=False) as client, ThreadPoolExecutor(3) as pool:
        config = Conv2D(4, 1, kernel_initializer="ones", data_format="channels_last")
        found = list(pool.map(lambda _: client.convolve(config, x), range(3)))
        assert all((each.output == 4).all() for each in found)
        with pytest.raises(ValueError, match="--max-admitted-bytes"):
            client.convolve(config, np.ones((1, 3000, 3000, 4), "f4"))


def test_a_deadline_that_the_line_cannot_meet_is_refused(bounded: RunningServer) -> None:
    with (
        Client(bounded.target, retry=ONCE, shared_memory=False) as busy,
        Client(elsewhere(bounded), retry=ONCE, shared_memory=False) as hasty,
    ):
        # The least of three, as a busy machine may stop for longer than the others take.
        took = min(busy.convolve(SLOW.with_seed(0), X, batching=False).timing.compute_us for _ in range(3)) / 1e6
        crowd = Crowd(busy, 4, batching=False)
        with pytest.raises(DeadlineExceededError):
            hasty.convolve(SLOW.with_seed(0), X, timeout=took / 2)
        crowd.pool.shutdown()


# Floods


def test_a_flood_of_tiny_streams_leaves_nothing_behind(bounded: RunningServer, caller: RawCaller) -> None:
    def flood(number: int) -> None:
        for _ in range(number):
            call = caller.stub.ConvolveStream(iter([start()]), timeout=60)
            with suppress(grpc.RpcError):
                assert list(call) == []
            # HTTP/2's REFUSED_STREAM: on a busy machine more streams than a connection may have are not yet put away.
            is_refused = "error code 7" in (call.details() or "")
            assert is_refused or call.code() in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)

    flood(50)
    size, threads = (status(bounded.process.pid, name) for name in ("VmRSS", "Threads"))
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(flood, [100] * 12))
    assert status(bounded.process.pid, "VmRSS") - size < 100_000_000
    assert status(bounded.process.pid, "Threads") - threads < 40


def test_who_floods_with_pings_is_sent_away(bounded: RunningServer, caller: RawCaller) -> None:
    host, _, port = bounded.target.rpartition(":")
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    ping = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
    with socket.create_connection((host, int(port)), timeout=60) as flooding:
        flooding.sendall(preface + settings)
        flooding.sendall(10 * ping)
        received = b""
        while data := flooding.recv(2**16):
            received += data
    assert b"too_many_pings" in received


def test_echoes_take_turns_with_the_bytes_of_all_calls(bounded: RunningServer, caller: RawCaller) -> None:
    # Each has its bytes twice: as it has written them, and on their way into the connection. So one fits at a time.
    def echo(_: int) -> str:
        try:
            caller.stub.Echo(EchoRequest(output_bytes=195_000_000), timeout=60)
        except grpc.RpcError as failure:
            return type(from_rpc_error(failure)).__name__
        return "answered"

    forget_peak(bounded.process.pid)
    before = status(bounded.process.pid, "VmRSS")
    with ThreadPoolExecutor(4) as pool:
        assert "answered" in (told := set(pool.map(echo, range(4))))
    assert told <= {"answered", "OverloadedError"}
    assert status(bounded.process.pid, "VmHWM") - before < 1.6 * 400_000_000  # as the next one may come too early


def test_an_echo_that_would_never_have_its_bytes_is_refused(caller: RawCaller) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub.Echo(EchoRequest(output_bytes=200_000_001), timeout=60)
    text, found = checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
    assert "--max-admitted-bytes" in text
    assert set(found) == {"output_bytes"}
