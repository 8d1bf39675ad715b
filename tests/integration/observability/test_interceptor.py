"""What observers hear of calls in all forms, however they end, and the id that every answer has."""

import threading

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convserve import OverloadedError
from convserve_server.observability.call_record import CallRecorder, current_call
from tests.support.observability.observers import Heard
from tests.support.servers.in_process_servers import EVERY_FORM, PATH, raising, sent, served_methods
from tests.support.waiting import eventually


class Kept(Heard):
    """An observer that keeps the records of calls that ended."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def ended(self, call):
        super().ended(call)
        self.calls.append(call)


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def methods(kept):
    with served_methods(CallRecorder([PATH, "/grpc.health.v1.Health/Check"], [kept]), 2, 60.0) as found:
        yield found


def called(channel, *messages, path=PATH, **options):
    """Calls with raw messages; returns the trailing metadata after the end, and the error or None."""
    call = channel.stream_stream(path)(iter(messages), **{"timeout": 60} | options)
    try:
        list(call)
    except grpc.RpcError as error:
        return dict(call.trailing_metadata()), error
    return dict(call.trailing_metadata()), None


def one(kept):
    """Returns the record of the only call, when it has ended."""
    (call,) = eventually(lambda: kept.calls)
    return call


@EVERY_FORM
def test_a_call_that_is_answered(methods, kept, form):
    channel = methods.let(form, sum)
    messages = sent(3, 4) if form.startswith("stream") else sent(7)
    trailers, error = called(channel, *messages)
    assert error is None
    call = one(kept)
    assert kept.words == [("began", "test.Service/Method"), "OK"]
    assert (call.code, call.method, call.method_label) == ("OK", "test.Service/Method", "test.Service/Method")
    assert call.received_bytes == sum(map(len, messages))
    answers = [Int64Value(value=-1)] if form.endswith("stream") else []
    assert call.sent_bytes == sum(each.ByteSize() for each in [*answers, Int64Value(value=7)])
    assert call.caller.startswith("ipv4:127.0.0.1")
    assert trailers["x-request-id"] == call.request_id


@EVERY_FORM
def test_the_callers_own_id_comes_back_with_an_answer_and_with_an_error(methods, kept, form):
    for answer in (sum, raising(OverloadedError("busy"))):
        channel = methods.let(form, answer)
        trailers, _ = called(channel, *sent(1), metadata=[("x-request-id", "mine-1")])
        assert trailers["x-request-id"] == "mine-1"
    eventually(lambda: len(kept.calls) == 2)
    assert [each.request_id for each in kept.calls] == ["mine-1", "mine-1"]


@EVERY_FORM
def test_a_refusal_has_its_reason_and_keeps_its_details(methods, kept, form):
    channel = methods.let(form, raising(OverloadedError("busy", retry_after_s=2)))
    trailers, error = called(channel, *sent(1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert {"x-request-id", "grpc-status-details-bin"} <= set(trailers)
    assert (one(kept).code, one(kept).reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert kept.words[1] == (0, "OVERLOADED")


@EVERY_FORM
def test_a_defect_has_its_error_id_beside_the_request_id_in_record_and_log(methods, kept, form, caplog):
    channel = methods.let(form, raising(RuntimeError("a defect")))
    trailers, error = called(channel, *sent(1), metadata=[("x-request-id", "mine-2")])
    assert error.code() is grpc.StatusCode.INTERNAL
    call = one(kept)
    assert (call.code, call.reason) == ("INTERNAL", "INTERNAL")
    assert call.error_id in error.details()
    (record,) = [each for each in caplog.records if each.name == "convserve"]
    assert (record.error_id, record.request_id) == (call.error_id, "mine-2") == (call.error_id, call.request_id)
    assert f"error id {call.error_id}, request id mine-2" in record.getMessage()
    assert trailers["x-request-id"] == "mine-2"


@EVERY_FORM
def test_the_method_finds_its_record(methods, kept, form):
    found = []

    def answer(received):
        found.append(current_call())
        return sum(received)

    channel = methods.let(form, answer)
    called(channel, *sent(1))
    assert found == [one(kept)]


@EVERY_FORM
@pytest.mark.parametrize("timeout_s", [60, 1])
def test_a_caller_that_leaves(methods, kept, form, timeout_s):
    waiting, released = threading.Event(), threading.Event()

    def answer(received):
        waiting.set()
        released.wait(30)
        return sum(received)

    channel = methods.let(form, answer)
    call = channel.stream_stream(PATH)(iter(sent(1)), timeout=timeout_s)
    try:
        assert waiting.wait(30)
        if timeout_s == 60:
            call.cancel()
        # What a timeout is recorded as depends on how long its message takes: test_grpc_private.py has the rule.
        assert one(kept).code in ({"CANCELLED"} if timeout_s == 60 else {"CANCELLED", "DEADLINE_EXCEEDED"})
    finally:
        released.set()


@pytest.mark.parametrize("messages", [(), (b"",), (2**17 * b"\xff",)], ids=["none", "empty", "large"])
def test_a_method_that_is_not_there_is_told_in_a_bounded_form(methods, kept, messages):
    path = "/no/" + "x" * 1000
    _, error = called(methods.channel, *messages, path=path)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    call = one(kept)
    assert (call.code, call.method, call.reason) == ("UNIMPLEMENTED", "unknown", "UNIMPLEMENTED")
    assert call.caller.startswith("ipv4:127.0.0.1")
    assert call.method_label.startswith("'/no/xxx")
    assert len(call.method_label) < 300


def test_a_method_that_is_not_listed_is_answered_and_not_told_apart(methods, kept):
    stub = health_pb2_grpc.HealthStub(methods.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == 1
    watch.cancel()
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
    eventually(lambda: len(kept.calls) == 2)
    assert {each.method for each in kept.calls} == {"grpc.health.v1.Health/Check"}
