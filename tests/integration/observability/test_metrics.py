"""Metrics of a real server: they add up exactly, whichever way calls come and end, and the page lists all of them."""

import re
import subprocess
import sys

import grpc
import numpy as np
import pytest

from convserve import Client, Conv2D
from convserve.v1.convolution_service_pb2 import GetServerInfoRequest
from tests.support.observability.scrapes import CONVOLVE, STREAM, Meter, families, page, values
from tests.support.processes import listening_ports
from tests.support.raw.calls import convolve_request, layer, plan_request, raw_caller, tensor, weights
from tests.support.raw.shared_memory import Sharer, X, shared_request
from tests.support.raw.streams import Feed, answers, image, item, opening, start
from tests.support.repository import ROOT
from tests.support.servers.server_process import numpy_server

PLAN = "convserve.v1.ConvolutionService/Plan"
INFO = "convserve.v1.ConvolutionService/GetServerInfo"
DOCUMENT = (ROOT / "docs/observability.md").read_text()


@pytest.fixture(scope="module")
def metered():
    """A server with metrics that shares memory."""
    with numpy_server("--metrics", "127.0.0.1:0", "--shared-memory", "--max-call-bytes", str(2**24)) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def caller(metered):
    with raw_caller(metered.target) as connected:
        yield connected


def ended(method, code="OK", calls=1, **more):
    """Returns what so many calls of a method count."""
    names = {"received": "received_bytes_total", "sent": "sent_bytes_total"}
    found = {
        ("convserve_requests_total", code, method): calls,
        ("convserve_request_duration_seconds_count", method): calls,
    }
    return found | {(f"convserve_{names[name]}", method): value for name, value in more.items() if value}


def computed(method, timings, *, samples, received, sent):
    """Returns what forward passes count."""
    found = {
        ("convserve_queue_seconds_count", method): len(timings),
        ("convserve_queue_seconds_sum", method): sum(each.queue_us for each in timings) / 1e6,
        ("convserve_compute_seconds_count", method): len(timings),
        ("convserve_compute_seconds_sum", method): sum(each.compute_us for each in timings) / 1e6,
        ("convserve_batch_samples_count", method): len(timings),
        ("convserve_batch_samples_sum", method): samples,
        ("convserve_input_bytes_total", method): received,
        ("convserve_output_bytes_total", method): sent,
    }
    return {key: pytest.approx(value, rel=1e-6, abs=1e-9) for key, value in found.items() if value}


def test_unary_calls_add_up(metered, caller):
    meter = Meter(metered.metrics)
    request = convolve_request(layer(weights=weights(np.ones((1, 1, 1, 1)))), input=tensor(np.ones((3, 4, 4, 1))))
    found = [caller.stub.Convolve(request, timeout=60) for _ in range(4)]
    assert meter.after(4) == ended(
        CONVOLVE, calls=4, received=4 * request.ByteSize(), sent=sum(each.ByteSize() for each in found)
    ) | computed(CONVOLVE, [each.timing for each in found], samples=12, received=4 * 192, sent=4 * 192)


def test_calls_that_compute_nothing_add_up(metered, caller):
    meter = Meter(metered.metrics)
    plan, info = plan_request(), GetServerInfoRequest()
    planned, told = caller.stub.Plan(plan, timeout=60), caller.stub.GetServerInfo(info, timeout=60)
    assert meter.after(2) == ended(PLAN, received=plan.ByteSize(), sent=planned.ByteSize()) | ended(
        INFO, received=info.ByteSize(), sent=told.ByteSize()
    )


def test_a_stream_is_one_call_and_its_items_are_computations(metered, caller):
    meter = Meter(metered.metrics)
    images = [image(number, 2, 3, 4, 1) for number in range(3)]
    messages = [start(), *(each for number, x in enumerate(images) for each in item(number, x, 64))]
    messages.append(opening(3, 1, 2, 2, 5))  # of too many channels
    found = list(caller.stub.ConvolveStream(iter(messages), timeout=60))
    assert list(answers(found)) == [0, 1, 2, 3]
    expected = ended(
        STREAM, received=sum(each.ByteSize() for each in messages), sent=sum(each.ByteSize() for each in found)
    )
    results = [each.result for each in found if each.WhichOneof("message") == "result"]
    expected |= computed(
        STREAM,
        [each.timing for each in results],
        samples=sum(each.batch_size for each in results),  # items that wait are computed together
        received=sum(x.nbytes for x in images),
        sent=2 * sum(x.nbytes for x in images),
    )
    assert meter.after(1) == expected | {("convserve_refused_total", "INVALID_WEIGHTS"): 1}


def test_items_of_a_stream_count_while_it_is_open(metered, caller):
    before = values(page(metered.metrics))
    feed = Feed(start(), *item(0, image(0)))
    call = caller.stub.ConvolveStream(iter(feed), timeout=60)
    assert next(call).WhichOneof("message") == "result"
    now = values(page(metered.metrics))
    assert now["convserve_requests_in_flight", STREAM] == 1
    passes = ("convserve_compute_seconds_count", STREAM)
    assert now[passes] - before.get(passes, 0) == 1
    meter = Meter(metered.metrics, quiet=False)
    feed.end()
    list(call)
    assert meter.after(1)["convserve_requests_in_flight", STREAM] == -1


def test_tensors_in_shared_memory_count_as_tensors_and_not_as_messages(metered, caller):
    with Sharer.of(caller) as sharer:
        region = sharer.share()
        region.map[:64] = X.tobytes()
        request = shared_request(region.place(), region.place(1024))
        caller.stub.Convolve(request, timeout=60)  # so that the question for the address has ended
        meter = Meter(metered.metrics)
        answer = caller.stub.Convolve(request, timeout=60)
    assert request.ByteSize() < 200
    assert meter.after(1) == ended(CONVOLVE, received=request.ByteSize(), sent=answer.ByteSize()) | computed(
        CONVOLVE, [answer.timing], samples=1, received=64, sent=64
    )


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (convolve_request(input=tensor(np.ones((1, 2, 2, 1)), shape=(1, 2, 2, 2))), "INVALID_ARGUMENT",
         "INVALID_TENSOR"),
        (convolve_request(layer(weights=weights(np.ones((2, 1, 1, 1))))), "INVALID_ARGUMENT", "INVALID_WEIGHTS"),
        (convolve_request(*[layer()] * 65), "INVALID_ARGUMENT", "TOO_LARGE"),
    ],
)  # fmt: skip
def test_refused_calls_count_with_their_reason(metered, caller, request_, code, reason):
    meter = Meter(metered.metrics)
    with pytest.raises(grpc.RpcError):
        caller.stub.Convolve(request_, timeout=60)
    assert meter.after(1) == ended(CONVOLVE, code, received=request_.ByteSize()) | {
        ("convserve_refused_total", reason): 1
    }


def test_bytes_that_are_no_message_count(metered, caller):
    meter = Meter(metered.metrics)
    with pytest.raises(grpc.RpcError):
        caller.channel.unary_unary(f"/{PLAN}")(b"\xff\xff", timeout=60)
    assert meter.after(1) == ended(PLAN, "INVALID_ARGUMENT", received=2) | {
        ("convserve_refused_total", "INVALID_REQUEST"): 1
    }


def test_methods_that_are_not_there_are_one(metered, caller):
    meter = Meter(metered.metrics)
    for number in range(3):
        with pytest.raises(grpc.RpcError):
            caller.channel.unary_unary(f"/convserve.v1.ConvolutionService/Method{number}")(b"", timeout=60)
    refused = {("convserve_refused_total", "UNIMPLEMENTED"): 3}
    assert meter.after(3) == ended("unknown", "UNIMPLEMENTED", calls=3) | refused


def test_what_the_server_holds_is_read_when_it_is_asked_for(metered, caller):
    before = values(page(metered.metrics))
    with Client(metered.target) as client:
        kernel = np.random.default_rng(0).random((5, 5, 2, 3), dtype="f4")
        stored = client.put(Conv2D(3, 5, use_bias=False), kernel=kernel, name="held")
        stored(np.ones((1, 5, 9, 2), "f4"))
        now = values(page(metered.metrics))
        usage = client.info().usage
        client.delete(stored)
    grown = {key: now[key] - before[key] for key in now if key in before}
    assert grown["convserve_stored_layers",] == 1
    assert grown["convserve_stored_memory_bytes",] >= kernel.nbytes
    assert grown["convserve_traces",] == grown["convserve_warm_shapes",] == 1
    assert now["convserve_stored_layers",] == usage.stored_layers
    assert now["convserve_traces",] == usage.traces
    assert now["convserve_evictions_total",] == usage.evictions
    assert now["convserve_waiting_calls",] == 0
    assert now["convserve_max_admitted_bytes",] > 0
    assert now["process_resident_memory_bytes",] > 2**24


def test_the_document_lists_exactly_what_the_server_exports(metered, caller):
    caller.check_service()
    table = re.findall(r"^\| `((?:convserve|process)_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT, re.MULTILINE)
    exported = families(page(metered.metrics))
    assert {name for name, _, _ in table} == set(exported)
    for name, kind, labels in table:
        assert exported[name].type == kind, name
        used = {label for sample in exported[name].samples for label in sample.labels} - {"le"}
        assert used == (set(re.findall(r"`(\w+)`", labels)) if exported[name].samples else set()), name


def test_metrics_are_there_before_the_server_is_ready_and_until_it_has_drained(tmp_path):
    with numpy_server("--metrics", "127.0.0.1:0", "--pre-stop-s", "3600") as running:
        running.process.terminate()
        for line in running.process.stdout:
            if line.startswith("stopping"):
                break
        assert "convserve_requests_total" in families(page(running.metrics))


def test_a_taken_address_ends_the_server_with_one_line(metered):
    address = metered.metrics.removeprefix("http://").removesuffix("/metrics")
    command = [sys.executable, "-m", "convserve", "serve", "--listen", "127.0.0.1:0", "--metrics", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    error = f"error: --metrics: Expected an address that is free and may be used. Received {address}: "
    error += "Address already in use.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error)


def test_without_the_setting_nothing_listens(server):
    assert server.metrics == ""
    assert listening_ports(server.process.pid) == {int(server.target.rpartition(":")[2])}
