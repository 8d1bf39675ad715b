"""Spans as a collector receives them: the caller's, the server's below it, and below that waiting and computing."""

import json
import os
import secrets
import subprocess
import sys

import grpc
import pytest

from tests.support.observability.span_collector import http_span_collector, span_collector
from tests.support.pages import blocks, text
from tests.support.raw.calls import convolve_request, raw_caller
from tests.support.raw.streams import answers, image, item, opening, start
from tests.support.servers.server_process import numpy_server
from tests.support.waiting import eventually

SERVER = 2  # SpanKind in the wire format
CLIENT = 3
ERROR = 2  # Status.StatusCode in the wire format
SERVICE = "convserve.v1.ConvolutionService"
(EXAMPLE,) = blocks(text("docs/observability.md"), "python")


@pytest.fixture(scope="module")
def collector():
    with span_collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector):
    """A server that sends its spans to the collector, and logs requests."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"}
    with numpy_server("--log-requests", "--log-format=json", "--shared-memory", environment=environment) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def caller(traced):
    with raw_caller(traced.target) as connected:
        yield connected


class Parent:
    """A caller's span, as it travels."""

    def __init__(self, sampled=True):
        self.trace, self.id = secrets.token_hex(16), secrets.token_hex(8)
        self.metadata = [("traceparent", f"00-{self.trace}-{self.id}-{sampled:02d}")]


def test_a_call_is_a_span_below_its_callers(caller, collector, traced):
    parent = Parent()
    answer = caller.stub.Convolve(convolve_request(), timeout=60, metadata=parent.metadata)
    call, queue, compute = collector.waited_for(lambda spans: len(spans) == 3, parent.trace)
    assert (call.name, call.kind, call.parent, call.service) == (f"{SERVICE}/Convolve", SERVER, parent.id, "convserve")
    assert [(each.name, each.parent) for each in (queue, compute)] == [("queue", call.id), ("compute", call.id)]
    assert call.begin_ns <= queue.begin_ns <= queue.end_ns == compute.begin_ns <= compute.end_ns <= call.end_ns
    assert queue.end_ns - queue.begin_ns == answer.timing.queue_us * 1000
    assert compute.end_ns - compute.begin_ns == answer.timing.compute_us * 1000
    attributes = call.attributes
    assert (attributes["rpc.service"], attributes["rpc.method"]) == (SERVICE, "Convolve")
    assert (attributes["rpc.system"], attributes["rpc.grpc.status_code"], call.status) == ("grpc", 0, 0)
    assert compute.attributes | {"convserve.warm": None} == {
        "convserve.batch_size": 1, "convserve.device": "cpu:0", "convserve.warm": None,
        "convserve.input_shape": [1, 2, 2, 1], "convserve.output_shape": [1, 2, 2, 1],
    }  # fmt: skip
    (line,) = eventually(lambda: [each for each in traced.log_lines if parent.trace in each])  # a thread writes it
    logged = json.loads(line)
    assert (logged["trace_id"], logged["request_id"]) == (parent.trace, attributes["convserve.request_id"])


def test_a_call_of_a_caller_without_spans_is_a_trace_of_its_own(caller, collector):
    caller.stub.Convolve(convolve_request(), timeout=60, metadata=[("x-request-id", "alone")])

    def alone(spans):
        return [each for each in spans if each.attributes.get("convserve.request_id") == "alone"]

    (call,) = alone(collector.waited_for(alone))
    assert call.parent == ""
    assert len(collector.waited_for(lambda spans: len(spans) == 3, call.trace)) == 3


def test_each_item_of_a_stream_has_its_spans(caller, collector):
    parent = Parent()
    messages = [start(), *item(0, image(0)), *item(1, image(1, 2, 3, 4, 1)), opening(2, 1, 2, 2, 5)]
    found = caller.stub.ConvolveStream(iter(messages), timeout=60, metadata=parent.metadata)
    assert len(answers(found)) == 3
    spans = collector.waited_for(lambda spans: len(spans) == 5, parent.trace)
    assert sorted(each.name for each in spans) == ["compute", "compute", f"{SERVICE}/ConvolveStream", "queue", "queue"]
    assert spans[0].events == ("refused",)
    assert {each.parent for each in spans[1:]} == {spans[0].id}
    shapes = [each.attributes["convserve.input_shape"] for each in spans if each.name == "compute"]
    assert sorted(shapes) == [[1, 3, 4, 1], [2, 3, 4, 1]]


def test_a_refusal_is_not_the_servers_failure(caller, collector):
    parent = Parent()
    with pytest.raises(grpc.RpcError):
        caller.stub.Convolve(convolve_request(output_dtype=99), timeout=60, metadata=parent.metadata)
    (call,) = collector.waited_for(bool, parent.trace)
    assert (call.status, call.attributes["rpc.grpc.status_code"]) == (0, 3)
    assert (call.attributes["error.type"], call.events) == ("INVALID_TENSOR", ("refused",))


def test_a_method_that_is_not_there_is(caller, collector):
    parent = Parent()
    with pytest.raises(grpc.RpcError):
        caller.channel.unary_unary("/no/Method")(b"", timeout=60, metadata=parent.metadata)
    (call,) = collector.waited_for(bool, parent.trace)
    assert (call.name, call.status, call.attributes["rpc.grpc.status_code"]) == ("unknown", ERROR, 12)


def test_what_its_caller_does_not_sample_and_the_health_have_no_spans(caller, collector):
    unsampled, health, sampled = Parent(sampled=False), Parent(), Parent()
    caller.stub.Convolve(convolve_request(), timeout=60, metadata=unsampled.metadata)
    caller.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60, metadata=health.metadata)
    caller.stub.Convolve(convolve_request(), timeout=60, metadata=sampled.metadata)
    collector.waited_for(lambda spans: len(spans) == 3, sampled.trace)
    assert collector.spans(unsampled.trace) == collector.spans(health.trace) == []


@pytest.mark.parametrize("header", ["", "nonsense", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_header_that_is_none_does_no_harm(caller, header):
    answer = caller.stub.Convolve(convolve_request(), timeout=60, metadata=[("traceparent", header)])
    assert answer.output.shape == [1, 2, 2, 1]


def test_baggage_is_neither_kept_nor_told_in_the_log(caller, collector, traced):
    parent = Parent()
    baggage = [("baggage", "s3cret, =s3cret, " + "s3cret" * 1500)]
    caller.stub.Convolve(convolve_request(), timeout=60, metadata=parent.metadata + baggage)
    assert len(collector.waited_for(lambda spans: len(spans) == 3, parent.trace)) == 3
    assert "s3cret" not in traced.log.read_text()


def ran(code, traced, collector):
    """Runs a caller's program and returns the trace of its span."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_SERVICE_NAME": secrets.token_hex(8)}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("localhost:50051", traced.target)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    mine = environment["OTEL_SERVICE_NAME"]

    def roots(spans):
        return [each for each in spans if each.service == mine and not each.parent]

    (root,) = roots(collector.waited_for(roots))
    return root


def check_chain(collector, root, methods):
    """Asserts that the server's spans are below the client's, and those below the program's."""

    def complete(spans):
        return len(methods) == len([each for each in spans if each.service == "convserve" and each.kind == SERVER])

    spans = {each.id: each for each in collector.waited_for(complete, root.trace)}
    found = []
    for each in spans.values():
        if each.kind == SERVER:
            client = spans[each.parent]
            assert (client.kind, client.service, client.parent) == (CLIENT, root.service, root.id)
            found.append(each.attributes["rpc.method"])
    assert sorted(found) == sorted(methods)


def test_the_documents_example(traced, collector):
    root = ran(EXAMPLE, traced, collector)
    assert root.name == "edges"
    check_chain(collector, root, ["Convolve"])


BODY = """
def check(y):
    assert y.shape[-1] == 8
small, large = np.ones((1, 8, 8, 3), "f4"), np.ones((4, 300, 300, 3), "f4")
"""
SYNC = """
with trace.get_tracer("mine").start_as_current_span("mine"):
    for shared_memory in (True, False):
        with convserve.Client("localhost:50051", shared_memory=shared_memory) as c:
            check(c.conv2d(small, filters=8, kernel_size=3, seed=0))
            check(c.conv2d(large, filters=8, kernel_size=3, seed=0))
            try:
                c.layer("nobody")
            except convserve.LayerNotFoundError:
                pass
provider.shutdown()
"""
ASYNC = """
import asyncio
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
GrpcAioInstrumentorClient().instrument()
async def main():
    with trace.get_tracer("mine").start_as_current_span("mine"):
        for shared_memory in (True, False):
            async with convserve.AsyncClient("localhost:50051", shared_memory=shared_memory) as c:
                check(await c.conv2d(small, filters=8, kernel_size=3, seed=0))
                check(await c.conv2d(large, filters=8, kernel_size=3, seed=0))
                try:
                    await c.layer("nobody")
                except convserve.LayerNotFoundError:
                    pass
asyncio.run(main())
provider.shutdown()
"""


@pytest.mark.parametrize("program", [SYNC, ASYNC], ids=["sync", "async"])
def test_the_span_is_passed_on_by_every_way_that_tensors_take(traced, collector, program):
    preamble = EXAMPLE.partition("with convserve.Client")[0]
    root = ran(preamble + BODY + program, traced, collector)
    shared, sent = ["GetServerInfo", "Convolve"], ["ConvolveStream"]
    check_chain(collector, root, ["Convolve", *shared, "GetLayer", "Convolve", *sent, "GetLayer"])


def test_a_collector_that_is_not_there_holds_nobody_up():
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with numpy_server(environment=environment) as running:
        with raw_caller(running.target) as caller:
            caller.check_service()
        assert running.stop() == 0


@pytest.mark.parametrize(("kind", "path"), [("", ""), ("TRACES_", "/v1/traces")])
def test_spans_are_sent_by_http_where_the_variables_say_so(kind, path):
    with http_span_collector() as by_http:
        variables = {"ENDPOINT": by_http.endpoint + path, "PROTOCOL": "http/protobuf"}
        environment = {f"OTEL_EXPORTER_OTLP_{kind}{name}": value for name, value in variables.items()}
        with numpy_server(environment=environment) as running, raw_caller(running.target) as connected:
            connected.stub.Convolve(convolve_request(), timeout=60)
            assert running.stop() == 0  # which sends what is left
        assert [each.name for each in by_http.spans()] == [f"{SERVICE}/Convolve", "queue", "compute"]


def test_spans_are_lines_of_stdout_where_the_variables_say_so():
    with (
        numpy_server("--log-format=json", environment={"OTEL_TRACES_EXPORTER": "console"}) as running,
        raw_caller(running.target) as connected,
    ):
        connected.stub.Convolve(convolve_request(), timeout=60)
        running.process.terminate()
        said = [json.loads(line) for line in running.process.stdout]
    assert {each["name"] for each in said if "name" in each} == {f"{SERVICE}/Convolve", "queue", "compute"}
