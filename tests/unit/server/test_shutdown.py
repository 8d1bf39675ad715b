"""What a stop waits for: the calls that gRPC's core has received and not given to Python yet. And what it does not."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest

from convserve_server.shutdown import calls_in_flight, wait_until_taken
from tests.support.processes import ended_afterwards
from tests.support.waiting import eventually

CALLS = 20
STARTING = """
import sys, threading
from convserve_server.observability.logs import start_logging
from convserve_server.shutdown import StopSignals
start_logging("info", "text")
StopSignals()
print("begun", file=sys.stderr, flush=True)
threading.Event().wait()
"""


class Arrivals(grpc.ServerInterceptor):
    """Counts calls, and keeps gRPC's thread at the first one until it may go on."""

    def __init__(self):
        self.count, self.go = 0, threading.Event()
        self.on_first = lambda: None

    def intercept_service(self, continuation, handler_call_details):
        self.count += 1
        if self.count == 1:
            self.go.wait(30)
            self.on_first()
        return continuation(handler_call_details)


@pytest.fixture
def kept():
    """A server whose thread is kept at the first of many calls: how many came, the server, and the calls."""
    arrivals, others = Arrivals(), calls_in_flight()
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    with ThreadPoolExecutor(CALLS) as pool:
        server = grpc.server(pool, interceptors=[arrivals])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary("/a.B/C")
            calls = [method.future(b"x", timeout=60) for _ in range(CALLS)]
            assert eventually(lambda: calls_in_flight() - others == CALLS)
            yield arrivals, server, calls
            arrivals.go.set()
            server.stop(0).wait(30)


def test_a_stop_of_grpc_cancels_the_calls_that_python_has_not_been_given(kept):
    """If this fails, gRPC has become better, and a stop need not wait any more."""
    arrivals, server, calls = kept
    arrivals.on_first = lambda: server.stop(30)
    arrivals.go.set()
    codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.CANCELLED) > CALLS / 2


def test_a_stop_waits_until_all_are_taken(kept):
    arrivals, server, calls = kept
    waiting = threading.Thread(target=wait_until_taken, args=(lambda: arrivals.count,))
    waiting.start()
    waiting.join(0.5)  # longer than any quiet moment that could be taken for the end
    assert waiting.is_alive()
    arrivals.go.set()
    waiting.join(60)
    server.stop(30).wait(60)
    assert [call.result() for call in calls] == [b"x"] * CALLS


def test_a_second_signal_ends_a_server_that_starts_and_whose_stdout_takes_no_more():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    command = [sys.executable, "-c", STARTING]
    with ended_afterwards(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    os.close(reader)
    os.close(writer)
