"""`convserve top` with a real server, and with what is none."""

import contextlib
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest

from convserve import Client, cli
from tests.support.observability.scrapes import Meter, page
from tests.support.processes import ended_with_the_test
from tests.support.raw.calls import convolve_request, raw_caller
from tests.support.servers.server_process import numpy_server


@pytest.fixture(scope="module")
def metered():
    """A server with metrics that has answered three calls and refused two."""
    with numpy_server("--metrics", "127.0.0.1:0") as running:
        with Client(running.target) as client:
            for _ in range(3):
                client.conv2d(np.ones((4, 8, 8, 3), "f4"), filters=8, kernel_size=3, seed=0)
        with raw_caller(running.target) as caller:
            for _ in range(2):
                with pytest.raises(grpc.RpcError):
                    caller.stub.Convolve(convolve_request(output_dtype=99), timeout=60)
        Meter(running.metrics)  # which waits until no call is in flight: that is noted after its caller has the answer
        yield running


def told(capsys, *arguments):
    """Returns exit status, stdout and stderr."""
    status = cli.main(["top", *arguments])
    return status, *capsys.readouterr()


def test_once(metered, capsys):
    status, out, error = told(capsys, metered.metrics, "--once")
    assert (status, error) == (0, "")
    title, head, units, *rows = out.splitlines()
    assert re.fullmatch(rf"{re.escape(metered.metrics)}, since its start, [\d.]+ s\s*", title)
    assert head.split() == ["calls", "p50", "p90", "p99", "queue", "compute", "in", "out"]
    assert units.split() == ["method", "/s", "now", *["ms"] * 5, "batch", "MB/s", "MB/s"]
    (convolve,) = (row.split() for row in rows if row.startswith("Convolve "))
    assert convolve[2] == "0"
    assert convolve[8] == "4"
    state = {row.split()[0]: row for row in rows if row.strip()}
    assert "0 waiting" in state["calls"]
    assert re.search(r"admitted of .*, [\d.]+ [MG]B resident", state["memory"])
    assert "0 stored" in state["layers"]
    assert state["refused"].split() == ["refused", "2", "INVALID_TENSOR"]


def test_an_address_is_enough(metered, capsys):
    address = metered.metrics.removeprefix("http://").removesuffix("/metrics")
    for each in (address, f"http://{address}", f"http://{address}/"):
        assert told(capsys, each, "--once")[0] == 0


def test_it_goes_on_until_the_server_ends(metered):
    with numpy_server("--metrics", "127.0.0.1:0") as running:
        command = [sys.executable, "-m", "convserve", "top", running.metrics, "--interval", "0.1"]
        process = ended_with_the_test(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        before = page(running.metrics)
        assert before
        with Client(running.target) as client:
            client.info()
        assert running.stop() == 0
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith(f"error: Expected a server's metrics at {running.metrics}. Received none (")


class Page(BaseHTTPRequestHandler):
    """Answers with something else."""

    def do_GET(self):
        if self.path == "/escapes":
            self.send_response(500, "\x1b[2J\x07")
        else:
            self.send_response(404 if self.path == "/404" else 200)
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever has read enough hangs up
            self.wfile.write(b"up 1\n" * (2**22 if self.path == "/endless" else 1))

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def other():
    """The URL of a server that has no metrics of ours."""
    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("path", "reason"), [("/", "no metrics of a convserve server"), ("/404", "Not Found")])
def test_another_server_is_told_in_one_line(other, capsys, path, reason):
    status, out, error = told(capsys, other + path, "--once")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert f"Received none ({reason}): start it with --metrics HOST:PORT" in error


@pytest.mark.parametrize("path", ["/escapes", "/endless"])
def test_no_terminal_obeys_another_server_and_no_page_is_without_end(other, capsys, path):
    status, out, error = told(capsys, other + path, "--once")
    assert (status, out) == (1, "")
    assert error.replace("\n", "").isprintable()


def test_nobody_is_told_in_one_line(capsys):
    status, out, error = told(capsys, "http://127.0.0.1:1/metrics", "--once")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert "refused" in error


def test_a_missing_extra_is_told_in_one_line(metered, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    status, out, error = told(capsys, metered.metrics, "--once")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert error.endswith("pip install 'convserve[top]'.\n")


@pytest.mark.parametrize("url",
    ["", "host", ":1", "ftp://host/metrics", "file:///etc/passwd", "host:port", "host:70000", "host:0", "::1:9464",
     "http://", "http://host:70000/metrics", "http://host:port/", "http://:1/metrics", "http://[::1/metrics"],
)  # fmt: skip
def test_what_is_no_address_is_wrong_usage(capsys, url):
    assert cli.main(["top", url, "--once"]) == 2
    assert "expected http://HOST:PORT/metrics or HOST:PORT" in capsys.readouterr().err


def test_a_grpc_port_is_said_to_be_one(server, capsys):
    status, _, error = told(capsys, server.target, "--once")
    assert (status, error.count("\n")) == (1, 1)
    assert "Received none (something else than HTTP/1.1, as a gRPC port has it): start it with --metrics" in error
