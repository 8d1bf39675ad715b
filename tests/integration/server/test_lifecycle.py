"""A server's life in real processes: start, readiness, stop with calls under way, and coming back."""

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convserve import Client, Conv2D, Layer, RetryRule, UnavailableError
from tests.support.processes import ended_afterwards
from tests.support.repository import ROOT
from tests.support.servers.server_process import numpy_server

ONCE = RetryRule(attempts=1)
NOT_SERVING, SERVING = 2, 1
# 4 * 4 * 16 equal weights of 2**-8: a layer of them, and a chain of such layers, gives a constant image back, exactly.
MEAN = Layer(Conv2D(16, 4, use_bias=False, data_format="channels_last"), np.full((4, 4, 16, 16), 2.0**-8, "f4"))


def work(client, value, layers=6, size=256):
    """Calls the server with what takes it some tenths of a second; returns whether the answer is right."""
    output = client.convolve([MEAN] * layers, np.full((1, size, size, 16), value, "f4")).output
    return np.array_equal(output, np.full_like(output, value)) and output.shape[1] == size - 3 * layers


@contextmanager
def starting_server(*arguments):
    """Starts a server, and does not wait until it is ready; gives the process, and what it says first."""
    metrics = ("--metrics", "127.0.0.1:0")  # which it says at once
    command = [sys.executable, "-m", "convserve", "serve", "--device", "cpu", *metrics, *arguments]
    pipe = subprocess.PIPE
    with ended_afterwards(command, stdout=pipe, stderr=pipe, text=True) as process:
        yield SimpleNamespace(process=process, first=process.stdout.readline())


def healthz(url):
    """Returns the status with which the metrics' port says whether the server serves."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


# One life from beginning to end


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """What can be seen of a server that starts, computes, is asked to stop, and stops."""
    seen = SimpleNamespace(health=[], http=[], target=f"unix://{tmp_path_factory.mktemp('life')}/socket")
    with (
        starting_server("--listen", seen.target, "--pre-stop-s", "4", "--drain-s", "3600") as server,
        Client(seen.target, retry=ONCE) as client,
        grpc.insecure_channel(seen.target) as channel,
    ):
        url = server.first.removeprefix("metrics on ").replace("/metrics", "/healthz").strip()
        with pytest.raises(UnavailableError):
            client.info()
        seen.http.append(healthz(url))
        changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        seen.health.append(next(changes).status)
        seen.http.append(healthz(url))
        client.wait_until_ready(timeout=60)  # its own channel may wait to connect again, for half a second
        seen.computed = [client.conv2d(np.ones((1, 5, 5, 1), "f4"), 1, 3, kernel_initializer="ones")]
        asked = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        seen.health.append(next(changes).status)
        seen.http.append(healthz(url))
        seen.computed.append(client.conv2d(np.ones((1, 6, 6, 1), "f4"), 1, 3, kernel_initializer="ones"))
        seen.health.extend(each.status for each in changes)
        seen.watch_ended = changes.code()
        out, seen.err = server.process.communicate(timeout=60)
        seen.out = server.first + out
        seen.stop_s, seen.status = time.monotonic() - asked, server.process.returncode
    return seen


def test_health_is_serving_from_ready_until_the_stop(life):
    assert life.health == [SERVING, NOT_SERVING]


def test_balancers_are_told_by_http_too(life):
    assert life.http == [503, 200, 503]


def test_calls_before_the_stop_and_during_its_delay_are_answered(life):
    assert [output.shape for output in life.computed] == [(1, 3, 3, 1), (1, 4, 4, 1)]
    assert all((output == 9).all() for output in life.computed)


def test_a_watch_of_the_health_ends_with_the_server_and_does_not_hold_it_up(life):
    assert life.watch_ended is grpc.StatusCode.OK
    assert life.stop_s >= 4  # and not the hour of the drain


def test_the_process_ends_with_status_0(life):
    assert life.status == 0


def test_it_prints_these_lines_and_nothing_of_tensorflow(life):
    expected = [
        r"metrics on http://127\.0\.0\.1:[1-9]\d*/metrics",
        rf"listening on {life.target}",
        r"ready after \d+\.\d s: convserve \d+\.\d+\.\d+, tensorflow \d\S*, keras \d\S*, cpu:0, TF32 off, oneDNN \S+",
        r"stopping: serving for 4 s more",
        r"stopping: finishing the calls in flight",
        r"stopped",
    ]
    lines = life.out.splitlines()
    assert len(lines) == len(expected), life.out
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)
    (settings,) = life.err.splitlines()
    assert f" INFO settings: listen=('{life.target}',), device=cpu, " in settings
    # What 0 of these comes to on this device.
    assert " max_call_flops=10000000000000, " in settings
    assert " concurrent_calls=2, max_batch_samples=64, max_batch_bytes=1048576, " in settings
    assert re.search(r" max_admitted_bytes=[1-9]\d*, ", settings)


# Calls under way


@contextmanager
def calls_under_way(target, number, **amount):
    """Sends calls, and waits until the server has taken all of them; gives their futures."""
    with (
        grpc.insecure_channel(target) as channel,
        Client(target, retry=ONCE, shared_memory=False) as client,  # which would first ask whether there is any
        ThreadPoolExecutor(number) as senders,
    ):
        servers = channelz_pb2_grpc.ChannelzStub(channel).GetServers

        def taken():
            answer = servers(channelz_pb2.GetServersRequest(), timeout=60)
            return sum(each.data.calls_started for each in answer.server)

        before = taken()
        calls = [senders.submit(work, client, value, **amount) for value in range(number)]
        asked = 1
        while taken() - before - asked < number:
            asked += 1
        taken()  # what arrived before this call was given to a handler before it
        yield calls


def test_a_stop_finishes_the_calls_under_way_and_takes_no_more():
    with numpy_server("--drain-s=1h") as server, calls_under_way(server.target, 6, layers=2) as calls:
        server.process.send_signal(signal.SIGTERM)
        assert not all(call.done() for call in calls)
        with Client(server.target, retry=ONCE) as late, pytest.raises(UnavailableError):
            all(late.info() for _ in itertools.count())
        assert all(call.result(timeout=60) for call in calls)
        assert server.process.wait(timeout=60) == 0
        assert server.process.stdout.read().splitlines() == ["stopping: finishing the calls in flight", "stopped"]
        assert server.log_lines == []
        host, _, port = server.target.rpartition(":")
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((host, int(port)))
            again.listen()


def test_a_stop_that_nobody_reads_of_loses_no_call():
    with numpy_server("--drain-s=1h") as server, calls_under_way(server.target, 6, layers=2) as calls:
        server.process.stdout.close()
        server.process.send_signal(signal.SIGTERM)
        assert all(call.result(timeout=60) for call in calls)
        assert server.process.wait(timeout=60) == 0
        assert server.log_lines == []


def test_a_log_that_nobody_reads_keeps_no_server_from_serving_and_ending():
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "tests.support.engines.numpy_server", "--listen", "127.0.0.1:0", "--log-requests"]
    with ended_afterwards(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        target = process.stdout.readline().removeprefix("listening on ").strip()
        while not process.stdout.readline().startswith("ready"):
            pass
        with Client(target, retry=ONCE) as client:
            for _ in range(700):  # a pipe holds some 400 lines
                assert client.info()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("arguments", "signals", "status"),
    [(("--drain-s", "1"), [signal.SIGTERM], 0), ((), [signal.SIGHUP, signal.SIGINT], 128 + signal.SIGINT)],
    ids=["after the drain", "at a second signal"],
)
def test_no_call_keeps_a_server_that_is_to_end(arguments, signals, status):
    with numpy_server(*arguments) as server, calls_under_way(server.target, 1, layers=60, size=1024) as (call,):
        for number in signals:
            server.process.send_signal(number)
            if number is not signal.SIGINT:
                assert server.process.stdout.readline() == "stopping: finishing the calls in flight\n"
        assert server.process.wait(timeout=60) == status
        with pytest.raises(UnavailableError):
            call.result(timeout=60)
        cut = ["--drain-s ran out: 1 calls in flight were cut off"] if status == 0 else []
        assert [line.partition(" WARNING ")[2] for line in server.log_lines] == cut


@pytest.mark.parametrize(
    ("seconds", "number"), [(0.0, signal.SIGINT), (1.0, signal.SIGTERM), (1.0, signal.SIGINT), (2.5, signal.SIGTERM)]
)
def test_a_server_that_still_starts_ends_at_the_first_signal(number, seconds):
    with starting_server("--listen", "127.0.0.1:0", "--log-format", "json") as server:
        time.sleep(seconds)  # in the middle of loading TensorFlow, or before, or after: it is the same
        server.process.send_signal(number)
        out, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        messages = [json.loads(line)["message"] for line in out.splitlines()]
        assert messages[-1] == "stopped"
        assert len(messages) == 1 or messages[0].startswith("listening")
        assert [json.loads(line)["message"] for line in err.splitlines()] in ([], ["settings"])


# Coming back


def test_a_client_outlives_a_server_that_was_killed(tmp_path):
    address = f"unix://{tmp_path}/socket"  # no port, which another program could take meanwhile
    with numpy_server("--listen", address) as first, Client(address, retry=ONCE) as client:
        assert work(client, 1, layers=1)
        first.process.kill()
        first.process.wait()
        with pytest.raises(UnavailableError):
            client.info()
        with Client(address, retry=RetryRule(attempts=50)) as patient, ThreadPoolExecutor(1) as sender:
            call = sender.submit(work, patient, 2, layers=1)
            with numpy_server("--listen", address):
                assert call.result(timeout=60)
                assert work(patient, 3, layers=1)
                client.wait_until_ready(timeout=60)  # it may wait to connect again, for half a second
                assert work(client, 4, layers=1)
