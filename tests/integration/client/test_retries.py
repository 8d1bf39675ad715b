"""What a client does when calls fail: it sends a tensor again, waits as it is told, and keeps within its timeout."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from convserve import AsyncClient, Client, DeadlineExceededError, OverloadedError, RetryRule, UnavailableError, errors
from convserve.errors import FieldViolation
from convserve.protocol.status import to_status
from convserve.tensors import framing
from convserve.v1.convolution_service_pb2 import ConvolveResponse, LayerOutcome

IMAGE = np.arange(2**18, dtype="f4").reshape(1, 512, 512, 1)  # 1 MiB, four times what gRPC itself would send again
QUICK = RetryRule(initial_s=0.001, longest_s=0.01)


class ScriptedServer:
    """Answers each call as a script says, and the calls after its end with the image doubled."""

    def __init__(self):
        self.script = []
        self.received = []
        self.times = []
        self.remaining = []
        self.released = threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request, context):
        self.times.append(time.monotonic())
        self.remaining.append(context.time_remaining())
        self.received.append(request)
        step = self.script.pop(0) if self.script else None
        if step == "hang":
            self.released.wait()
        elif step is not None:
            context.abort_with_status(to_status(step))
        return framing.write(ConvolveResponse(layers=[LayerOutcome()]), IMAGE * 2)

    def stop(self):
        self.released.set()
        self.server.stop(None).wait()


@pytest.fixture
def scripted():
    server = ScriptedServer()
    yield server
    server.stop()


def blocking(target, out=None, **arguments):
    with Client(target, shared_memory=False, **arguments) as client:
        return client.conv2d(IMAGE, 1, 1, out=out)


def awaited(target, out=None, **arguments):
    async def call():
        async with AsyncClient(target, shared_memory=False, **arguments) as client:
            return await client.conv2d(IMAGE, 1, 1, out=out)

    return asyncio.run(call())


BOTH = pytest.mark.parametrize("conv2d", [blocking, awaited])


@BOTH
def test_a_large_message_is_sent_again_whole(scripted, conv2d):
    scripted.script = [UnavailableError("starting"), UnavailableError("still starting")]
    assert np.array_equal(conv2d(scripted.target, retry=QUICK), IMAGE * 2)
    assert len(scripted.received) == 3
    assert len(scripted.received[0]) > 2**20
    assert scripted.received[0] == scripted.received[1] == scripted.received[2]


@BOTH
def test_the_callers_array_takes_the_answer_of_the_last_attempt_and_of_none_that_failed(scripted, conv2d):
    out = np.full(IMAGE.shape, 7, "f4")
    scripted.script = [UnavailableError("starting"), errors.InternalError("x")]
    with pytest.raises(errors.InternalError):
        conv2d(scripted.target, out, retry=QUICK)
    assert (out == 7).all()
    scripted.script = [UnavailableError("starting")]
    assert conv2d(scripted.target, out, retry=QUICK) is out
    assert np.array_equal(out, IMAGE * 2)


@BOTH
def test_a_delay_that_the_server_names_is_kept(scripted, conv2d):
    scripted.script = [OverloadedError("busy", retry_after_s=0.4), OverloadedError("busy", retry_after_s=0.2)]
    assert np.array_equal(conv2d(scripted.target, retry=QUICK), IMAGE * 2)
    first, second, third = scripted.times
    assert second - first >= 0.4
    assert third - second >= 0.2


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidTensorError(FieldViolation("input", "Expected x. Received y.")),
        errors.TooLargeError(FieldViolation("input", "Expected x. Received y.")),
        errors.OutOfMemoryError("x"),
        errors.UnauthenticatedError("x"),
        errors.PermissionDeniedError("x"),
        errors.UnimplementedError("x"),
        errors.InternalError("x", error_id="1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_fail_again_is_not_sent_again(scripted, conv2d, error):
    scripted.script = [error]
    with pytest.raises(type(error)) as caught:
        conv2d(scripted.target, retry=QUICK)
    assert str(caught.value) == str(error)
    assert len(scripted.received) == 1


@BOTH
def test_attempts_are_counted(scripted, conv2d):
    scripted.script = [UnavailableError(f"attempt {number}") for number in range(1, 10)]
    with pytest.raises(UnavailableError, match="attempt 3"):
        conv2d(scripted.target, retry=RetryRule(attempts=3, initial_s=0.001))
    assert len(scripted.received) == 3


@BOTH
def test_retries_end_with_the_timeout(scripted, conv2d):
    scripted.script = [UnavailableError("never")] * 10_000
    # The last attempt may be refused like the others, or be overtaken by the timeout.
    with pytest.raises((UnavailableError, DeadlineExceededError)):
        conv2d(scripted.target, retry=RetryRule(attempts=10_000, initial_s=0.05, longest_s=0.1), timeout=1)
    assert 2 <= len(scripted.received) < 10_000


@BOTH
def test_a_server_that_does_not_answer_is_given_up_with_advice(scripted, conv2d):
    scripted.script = ["hang"]
    text = "Expected an answer within timeout=0.5 seconds. Received none: raise the timeout, or send less in one call."
    with pytest.raises(DeadlineExceededError) as caught:
        conv2d(scripted.target, timeout=0.5)
    assert str(caught.value) == text


@BOTH
def test_the_timeout_counts_all_attempts(scripted, conv2d):
    scripted.script = [UnavailableError("starting"), OverloadedError("busy"), "hang"]
    with pytest.raises(DeadlineExceededError, match=r"timeout=2 seconds\. Received none in 3 attempts: "):
        conv2d(scripted.target, retry=RetryRule(initial_s=0.2), timeout=2)  # gRPC rounds less
    first, second, third = scripted.remaining
    assert first > second > third


@BOTH
def test_a_delay_beyond_the_timeout_is_not_waited_for(scripted, conv2d):
    scripted.script = [OverloadedError("busy", retry_after_s=36_000)]
    with pytest.raises(OverloadedError, match="busy") as caught:
        conv2d(scripted.target, timeout=3_600)  # which whoever runs this test would notice
    assert caught.value.retry_after_s == 36_000
    assert len(scripted.received) == 1


@BOTH
def test_where_nobody_listens_the_server_is_unavailable(conv2d):
    with pytest.raises(UnavailableError):
        conv2d("127.0.0.1:1", retry=RetryRule(attempts=2, initial_s=0.001))
