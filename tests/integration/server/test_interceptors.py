"""What the server's interceptor makes of a method's exceptions and of bytes that are no message, in all forms."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convserve import InternalError, OverloadedError
from convserve.protocol.status import from_rpc_error
from convserve_server.transport.in_flight_items import reads_items
from tests.support.raw.calls import checked
from tests.support.servers.in_process_servers import EVERY_FORM, PATH, raising, sent, served_methods
from tests.support.waiting import eventually

PRIVATE = "/home/operator/.ssh/id_rsa"


@pytest.fixture
def call():
    """Gives a function that calls a method of a form and an answer with raw messages."""
    with served_methods() as methods:
        yield partial(called, methods)


def called(methods, form, answer, *messages, path=PATH, **options):
    channel = methods.let(form, answer, path, **options)
    stalling = isinstance(messages[0], Stalling)
    answers = channel.stream_stream(path)(messages[0] if stalling else iter(messages), timeout=30)
    return [Int64Value.FromString(each).value for each in answers]


@EVERY_FORM
def test_a_method_that_answers_is_left_alone(call, form):
    values = [3, 4] if form.startswith("stream") else [7]
    assert call(form, sum, *sent(*values))[-1] == 7


@EVERY_FORM
def test_an_error_of_ours_travels_with_its_details(call, form):
    with pytest.raises(grpc.RpcError) as caught:
        call(form, raising(OverloadedError("busy", retry_after_s=2.5)), *sent(1))
    checked(caught.value, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert from_rpc_error(caught.value).retry_after_s == 2.5


@EVERY_FORM
@pytest.mark.parametrize(
    "defect", [RuntimeError(PRIVATE), KeyError(PRIVATE), AssertionError(PRIVATE), OSError(2, PRIVATE)]
)
def test_a_defect_is_told_by_an_id_under_which_the_log_has_it(call, form, defect, caplog):
    with caplog.at_level(logging.ERROR, logger="convserve"), pytest.raises(grpc.RpcError) as caught:
        call(form, raising(defect), *sent(1))
    checked(caught.value, grpc.StatusCode.INTERNAL, "INTERNAL")
    error = from_rpc_error(caught.value)
    assert type(error) is InternalError
    assert PRIVATE not in str(error)
    (record,) = [each for each in caplog.records if each.name == "convserve"]
    assert error.error_id
    assert error.error_id in record.getMessage()
    assert error.error_id in str(error)
    assert record.exc_info[1] is defect


@EVERY_FORM
def test_a_method_that_is_not_there_yet_is_unimplemented(call, form):
    with pytest.raises(grpc.RpcError) as caught:
        call(form, raising(NotImplementedError()), *sent(1))
    text, _ = checked(caught.value, grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")
    assert "/test.Service/Method" in text


@EVERY_FORM
def test_too_little_memory_is_told_as_that(call, form):
    with pytest.raises(grpc.RpcError) as caught:
        call(form, raising(MemoryError("Unable to allocate 7. TiB")), *sent(1))
    text, _ = checked(caught.value, grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert "7. TiB" in text


@EVERY_FORM
def test_an_answer_that_cannot_be_written_is_told_as_what_else_fails(call, form, caplog):
    with pytest.raises(grpc.RpcError) as caught:
        call(form, sum, *sent(1), serialize=raising(MemoryError()))
    checked(caught.value, grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    with pytest.raises(grpc.RpcError) as caught:
        call(form, sum, *sent(1), serialize=raising(ValueError(PRIVATE)))
    assert PRIVATE not in caught.value.details()
    assert from_rpc_error(caught.value).error_id in caplog.text


class Stalling:
    """The messages of a caller that sends one, and no more until it is released."""

    def __init__(self):
        self.released = threading.Event()
        self.messages = sent(1)

    def __iter__(self):
        return self

    def __next__(self):
        if not self.messages:
            self.released.wait(30)
            raise StopIteration
        return self.messages.pop()


@pytest.mark.parametrize("form", ["stream_unary", "stream_stream"])
def test_a_caller_that_stalls_keeps_half_of_the_slots_of_streams_and_nothing_else(form):
    callers = [Stalling() for _ in range(6)]
    with served_methods(idle_s=60) as methods, ThreadPoolExecutor(6) as threads:
        call = partial(called, methods)
        stalled = [threads.submit(call, form, sum, each, path="/test.Service/Stalled") for each in callers]
        refused = eventually(lambda: len(done := {each for each in stalled if each.done()}) == 4 and done)
        assert call("unary_unary", sum, *sent(7)) == [7]
        for each in callers:
            each.released.set()
    for each in refused:
        text, _ = checked(each.exception(), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert "while 2 of 4 are open, 2 of them yours" in text
    assert [each.result()[-1] for each in stalled if each not in refused] == [1, 1]


@pytest.mark.parametrize("form", ["stream_stream", "unary_stream"])
def test_streams_of_any_number_of_callers_leave_threads_for_single_calls_and_the_health(form):
    with served_methods(slots=4, idle_s=60) as methods, ExitStack() as stack:
        # The answers are larger than what is sent to a caller that does not read.
        methods.let(form, sum, "/test.Service/Stalled", lambda _: bytes(2**20))
        stalled = []
        for _ in range(14):  # each is a caller of its own, as each has a connection
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
            channel = stack.enter_context(grpc.insecure_channel(methods.target, options))
            caller = Stalling()
            stack.callback(caller.released.set)
            requests = caller if form == "stream_stream" else iter(caller.messages)
            stalled.append(channel.stream_stream("/test.Service/Stalled")(requests, timeout=60))
        refused = eventually(lambda: len(done := [each for each in stalled if not each.is_active()]) == 10 and done)
        for each in refused:
            assert "while 4 of 4 are open" in each.details()
        channel = methods.let("unary_unary", sum)
        assert channel.unary_unary(PATH)(*sent(7), timeout=60) == Int64Value(value=7).SerializeToString()
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1


@pytest.mark.parametrize("form", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_who_stalls_while_only_it_is_waited_for_is_sent_away(call, form):
    caller = Stalling()
    if not form.startswith("stream"):
        caller.messages.clear()
    with pytest.raises(grpc.RpcError) as caught:
        call(form, sum, caller)
    caller.released.set()
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert call(form, sum, *sent(7))[-1] == 7


def test_a_stream_whose_items_know_when_they_wait_may_stall():
    @reads_items
    def echo(requests, context):
        yield from requests

    with served_methods() as methods:
        handler = grpc.stream_stream_rpc_method_handler(echo, Int64Value.FromString, Int64Value.SerializeToString)
        methods._handlers[PATH] = handler
        marked, other = Stalling(), Stalling()
        answers = methods.channel.stream_stream(PATH)(marked, timeout=60)
        next(answers)
        with pytest.raises(grpc.RpcError):
            called(methods, "stream_stream", sum, other, path="/test.Service/Other")  # which began to wait later
        marked.released.set()
        other.released.set()
        assert list(answers) == []


@pytest.mark.parametrize("form", ["unary_unary", "unary_stream"])
def test_a_call_without_its_one_message_is_an_invalid_request(call, form):
    caller = Stalling()
    caller.messages.clear()
    caller.released.set()
    with pytest.raises(grpc.RpcError) as caught:
        call(form, sum, caller)
    checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@EVERY_FORM
def test_bytes_that_are_no_message_are_an_invalid_request(call, form):
    good = sent(1) if form.startswith("stream") else []
    with pytest.raises(grpc.RpcError) as caught:
        call(form, sum, *good, b"\xff")
    text, fields = checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert list(fields) == ["request"]
    assert "Received 1 bytes" in text
