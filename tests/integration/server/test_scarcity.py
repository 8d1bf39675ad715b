"""What the system does not give a server: descriptors, threads, memory. It refuses what needs them, and serves on."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from convserve import Client, Conv2D, OverloadedError, RetryRule, TooLargeError, UnavailableError
from tests.support.observability.scrapes import page
from tests.support.processes import descriptors, status
from tests.support.raw.calls import RawCaller, checked, raw_caller
from tests.support.raw.silent import SilentConnections
from tests.support.raw.streams import Feed, answers, image, item, start
from tests.support.servers.server_process import RunningServer, numpy_server, running_server
from tests.support.waiting import eventually

ONCE, OFTEN = RetryRule(attempts=1), RetryRule(attempts=1000)
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def layer(value: float) -> tuple[Conv2D, np.ndarray]:
    return Conv2D(1, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 1), value, "f4")


def call(client: Client) -> None:
    assert (client.conv2d(np.ones((1, 4, 4, 1), "f4"), 1, 1, kernel_initializer="ones") == 1).all()


# Descriptors


@pytest.mark.parametrize("files", [128, 256])
def test_more_connections_than_files_may_be_open_leave_some_free(tmp_path: Path, files: int) -> None:
    flags = ("--store", str(tmp_path), "--shared-memory", "--metrics", "127.0.0.1:0")
    with numpy_server(*flags, limits={resource.RLIMIT_NOFILE: files}) as server, ExitStack() as opened:
        assert f"this process may have {files} files open" in server.log.read_text()
        before = opened.enter_context(Client(server.target, timeout=20))
        call(before)
        silent = opened.enter_context(SilentConnections(server.target))
        silent.open(2 * files)
        memory = before.info().shared_memory_address
        for _ in range(files):
            stranger = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            stranger.connect(f"\0{memory}")
        eventually(lambda: silent.closed >= files)
        assert descriptors(server.process.pid) < files - files // 5
        before.put(*layer(5), name="kept")
        assert before.layer("kept")(np.ones((1, 2, 2, 1), "f4")).max() == 5
        with Client(server.target.replace("127.0.0.1", "localhost"), retry=OFTEN, timeout=60) as new:
            call(new)
        assert "convserve_requests" in page(server.metrics)
        assert "File descriptor limit reached" not in server.log.read_text()
        assert server.stop() == 0


def test_a_put_without_a_descriptor_is_refused_and_taken_when_there_is_one(tmp_path: Path) -> None:
    with (
        numpy_server("--store", str(tmp_path)) as server,
        Client(server.target, retry=ONCE, shared_memory=False) as client,
    ):
        client.put(*layer(1), name="before")
        pid, kind = server.process.pid, resource.RLIMIT_NOFILE
        limit = resource.prlimit(pid, kind)
        resource.prlimit(pid, kind, (3, limit[1]))  # of numbers: what was closed before leaves smaller ones free
        with pytest.raises(OverloadedError, match="open files: retry") as refused:
            client.put(*layer(2), name="after")
        assert refused.value.retry_after_s
        resource.prlimit(pid, kind, limit)
        client.put(*layer(2), name="after")
        assert client.layer("after").weights()[0].max() == 2


def test_a_store_whose_folder_is_gone_is_an_error_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with numpy_server("--store", str(folder)) as server, Client(server.target, retry=ONCE) as client:
        known = client.put(*layer(1), name="known")
        folder.rename(tmp_path / "moved")
        for change in (
            lambda: client.put(*layer(2), name="new"),
            lambda: client.put(*layer(1), name="other"),
            lambda: known.update_weights(np.full((1, 1, 1, 1), 3, "f4")),
            lambda: client.delete("known"),
        ):
            with pytest.raises(UnavailableError, match=r"--store that can be read and written.*No such file") as error:
                change()
            assert str(tmp_path) not in str(error.value)
        assert str(folder) in server.log.read_text()
        call(client)
        (tmp_path / "moved").rename(folder)
        client.put(*layer(2), name="new")
        assert client.layer("known").weights()[0].max() == 1


# Threads


@contextmanager
def without_threads(server: RunningServer) -> Iterator[None]:
    """Lets the system start no thread of a server, whose threads have stacks of 256 MiB each, for want of addresses."""
    pid, kind = server.process.pid, resource.RLIMIT_AS
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (status(pid, "VmSize") + 200 * 2**20, before[1]))
    yield
    with suppress(ProcessLookupError):
        resource.prlimit(pid, kind, before)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A server whose threads have large stacks."""
    with numpy_server("--metrics", "127.0.0.1:0", "--shared-memory", limits={resource.RLIMIT_STACK: 2**28}) as running:
        yield running


def test_without_further_threads_calls_are_refused_until_there_are_some(server: RunningServer) -> None:
    with raw_caller(server.target) as caller, without_threads(server):
        for _ in range(3):
            feeds = [Feed(start()) for _ in range(20)]  # more than there are threads
            streams = [caller.stub.ConvolveStream(iter(feed), timeout=60) for feed in feeds]
            refused = ended(streams, 4)
            for each in refused:
                checked(each, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            with pytest.raises(grpc.RpcError) as error:
                caller.check_service()
            checked(error.value, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            for feed in feeds:
                feed.end()
            ended(streams, 20)
            caller.check_service()
            with pytest.raises(OSError, match=r"[Rr]emote|reset|timed out"):
                page(server.metrics)
        with Client(server.target, timeout=20) as client:
            call(client)
    with raw_caller(server.target) as caller:
        assert list(answers(caller.stub.ConvolveStream(iter([start(), *item(1, image(1))]), timeout=60))) == [1]
    assert "convserve_requests" in page(server.metrics)
    assert server.stop() == 0


def ended(streams: list[Any], count: int) -> list[Any]:
    """Returns the streams that have ended, once so many have."""
    return eventually(lambda: len(found := [each for each in streams if not each.is_active()]) >= count and found)


def test_without_further_threads_a_stop_answers_what_is_in_flight(server: RunningServer) -> None:
    with raw_caller(server.target) as caller:
        feed = Feed(start(), *item(1, image(1)))
        stream = caller.stub.ConvolveStream(iter(feed), timeout=60)
        assert next(stream)  # so it has its threads
        with without_threads(server):
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: is_stopping(server))
            feed.send(*item(2, image(2)))
            feed.end()
            assert len(list(stream)) >= 2
            assert server.process.wait(timeout=60) == 0
    assert "Traceback" not in server.log.read_text()


def is_stopping(server: RunningServer) -> bool:
    """Returns whether its health says so, or nobody answers."""
    with grpc.insecure_channel(server.target, OWN_CONNECTION) as channel:
        try:
            RawCaller(channel).check_health(timeout=5)
        except (grpc.RpcError, AssertionError):
            return True
    return False


# Memory


def test_limits_of_the_process_count_for_what_calls_may_take() -> None:
    limits = {resource.RLIMIT_DATA: 1_200_000_000}
    config = Conv2D(16, 3, kernel_initializer="ones", data_format="channels_last", dtype="float32")
    flags = ("--max-admitted-bytes", "1GB", "--no-keep-memory")
    with running_server(*flags, limits=limits) as server, Client(server.target, retry=ONCE, timeout=60) as client:
        assert "--max-admitted-bytes is" in server.log.read_text()
        refused = client.plan(config, (1, 1500, 1500, 16))  # 576 MB
        assert refused.admitted is False
        with pytest.raises(TooLargeError, match="--max-admitted-bytes"):
            client.convolve(config, np.ones((1, 1500, 1500, 16), "f4"))
        side = 100
        while client.plan(config, (1, side + 100, side + 100, 16)).admitted:
            side += 100
        assert side >= 500
        for _ in range(2):  # with buffers as large as all that is left, on a machine with several cores
            assert client.convolve(config, np.ones((1, side, side, 16), "f4")).output.max() == 144
        assert server.stop() == 0
