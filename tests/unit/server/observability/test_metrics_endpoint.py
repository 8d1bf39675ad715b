"""The port of the metrics: whoever is slow, many or rude keeps it from nobody for long, and is not told in the log."""

import errno
import socket
import struct
import threading
from contextlib import ExitStack, closing
from types import SimpleNamespace

import pytest

from convserve_server import addresses
from convserve_server.observability import metrics_endpoint
from convserve_server.observability.metrics import new_registry
from convserve_server.observability.metrics_endpoint import MetricsEndpoint
from tests.support.observability.scrapes import page
from tests.support.waiting import eventually


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint that answers two at once."""
    monkeypatch.setattr(metrics_endpoint, "_MAX_SCRAPES", 2)
    with closing(MetricsEndpoint("127.0.0.1:0", new_registry(), lambda: True)) as opened:
        yield opened


def connected(endpoint):
    port = int(endpoint.url.rpartition(":")[2].removesuffix("/metrics"))
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def is_served(endpoint):
    try:
        return "process_cpu_seconds_total" in page(endpoint.url)
    except OSError:
        return False


def served_by(host, endpoint):
    return is_served(SimpleNamespace(url=f"http://{host}:{endpoint.url.rpartition(':')[2]}"))


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_it_is_served_by_every_family_of_addresses(address):
    with closing(MetricsEndpoint(address, new_registry(), lambda: True)) as endpoint:
        assert is_served(endpoint)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])  # noqa: S104
def test_all_addresses_are_those_of_both_families(host):
    with closing(MetricsEndpoint(f"{host}:0", new_registry(), lambda: True)) as endpoint:
        assert served_by("127.0.0.1", endpoint)
        assert served_by("[::1]", endpoint)


@pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1")])
def test_one_address_is_no_other(host, other):
    with closing(MetricsEndpoint(f"{host}:0", new_registry(), lambda: True)) as endpoint:
        assert not served_by(other, endpoint)


def test_a_name_is_served_at_each_of_its_addresses(monkeypatch):
    # The third is none of this machine's.
    ips = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "192.0.2.1")]
    infos = [(family, socket.SOCK_STREAM, 6, "", (ip, 0)) for family, ip in ips]
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
        endpoint = MetricsEndpoint("metrics.test:0", new_registry(), lambda: True)
    with closing(endpoint):
        assert served_by("127.0.0.1", endpoint)
        assert served_by("[::1]", endpoint)


def test_without_ipv6_all_addresses_are_those_of_ipv4(monkeypatch):
    bound = addresses.bound

    def without_ipv6(family, ip, port):
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return bound(family, ip, port)

    monkeypatch.setattr(addresses, "bound", without_ipv6)
    with closing(MetricsEndpoint("0.0.0.0:0", new_registry(), lambda: True)) as endpoint:
        assert served_by("127.0.0.1", endpoint)
    with pytest.raises(OSError, match="Cannot assign"):
        MetricsEndpoint("[::1]:0", new_registry(), lambda: True)


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nX: y\r\n"])
def test_many_who_are_slow_keep_nobody_out(endpoint, said):
    with ExitStack() as slow:
        connections = [slow.enter_context(connected(endpoint)) for _ in range(5)]
        for each in connections:
            each.sendall(said)
        for _ in range(4):
            assert is_served(endpoint)
        assert connections[0].recv(1) == b""  # the oldest made room


def test_who_is_slow_is_sent_away(endpoint, monkeypatch):
    monkeypatch.setattr(metrics_endpoint, "_SCRAPE_S", 0.0)
    with connected(endpoint) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert slow.recv(1) == b""


def test_what_had_no_thread_takes_no_place(endpoint, monkeypatch):
    def none(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        for _ in range(3):
            with connected(endpoint) as refused:
                assert refused.recv(1) == b""
    assert is_served(endpoint)


@pytest.mark.parametrize("said", [b"", b"GET /metrics", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: "])
def test_what_ends_before_its_end_is_not_answered(endpoint, said):
    with connected(endpoint) as broken:
        broken.sendall(said)
        broken.shutdown(socket.SHUT_WR)
        assert broken.recv(1) == b""
    with connected(endpoint) as whole:
        whole.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        whole.shutdown(socket.SHUT_WR)
        assert whole.recv(8) == b"HTTP/1.0"


def test_who_breaks_off_is_no_line_of_the_log(endpoint, capfd):
    for _ in range(5):
        with connected(endpoint) as rude:
            rude.sendall(b"GET /metr")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        assert eventually(lambda: is_served(endpoint))
    assert capfd.readouterr().err == ""
