"""The port of the metrics: whoever is slow, many or rude keeps it from nobody for long, and is not told in the log."""

import socket
import struct
import threading
from contextlib import ExitStack, closing

import pytest

from convserve_server.observability import metrics
from convserve_server.observability.metrics import MetricsEndpoint, new_registry
from tests.support.observability.scrapes import page
from tests.support.waiting import eventually


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint that answers two at once, and waits a short while for each."""
    monkeypatch.setattr(metrics, "_MAX_SCRAPES", 2)
    monkeypatch.setattr(metrics._Scrape, "timeout", 1.0)
    with closing(MetricsEndpoint("127.0.0.1:0", new_registry())) as opened:
        yield opened


def connected(endpoint):
    port = int(endpoint.url.rpartition(":")[2].removesuffix("/metrics"))
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def is_served(endpoint):
    try:
        return "process_cpu_seconds_total" in page(endpoint.url)
    except OSError:
        return False


def test_it_is_served_by_every_family_of_addresses():
    for address in ("127.0.0.1:0", "localhost:0", "[::1]:0"):
        with closing(MetricsEndpoint(address, new_registry())) as endpoint:
            assert is_served(endpoint)


def test_who_says_nothing_is_sent_away_and_further_ones_at_once(endpoint):
    with ExitStack() as silent:
        first, second = (silent.enter_context(connected(endpoint)) for _ in range(2))
        second.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert not is_served(endpoint)
        assert first.recv(1) == second.recv(1) == b""
        assert eventually(lambda: is_served(endpoint))


def test_what_had_no_thread_takes_no_place(endpoint, monkeypatch):
    def none(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        for _ in range(3):
            with connected(endpoint) as refused:
                assert refused.recv(1) == b""
    assert is_served(endpoint)


def test_who_breaks_off_is_no_line_of_the_log(endpoint, capfd):
    for _ in range(5):
        with connected(endpoint) as rude:
            rude.sendall(b"GET /metr")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        assert eventually(lambda: is_served(endpoint))
    assert capfd.readouterr().err == ""
