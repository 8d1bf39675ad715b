"""Echo: as many bytes as were asked for, whichever way the request is written, and no more than a message may have."""

import grpc
import pytest

from convserve.v1.convolution_service_pb2 import EchoRequest, EchoResponse
from tests.support.raw.calls import RPCS, checked, raw_caller

(ECHO,) = (each for each in RPCS if each.name == "Echo")


@pytest.fixture(scope="module")
def caller(server):
    with raw_caller(server.target) as connected:
        yield connected


@pytest.mark.parametrize("sent", [0, 1, 127, 128, 12_288, 5_000_000])
@pytest.mark.parametrize("wanted", [0, 1, 127, 128, 65_536, 5_000_000])
def test_the_number_of_bytes_is_the_callers(caller, sent, wanted):
    answer = caller.stub.Echo(EchoRequest(output_bytes=wanted, payload=bytes(sent)), timeout=60)
    assert len(answer.payload) == wanted


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x7a\x03any\x08\x05",  # the payload first
        b"\x08\x04\x7a\x03any\x08\x05",  # the number twice: the last one counts
        b"\x7a\x03any\x08\x05\x7a\x03any",  # the payload twice
        b"\x7a\x83\x00any\x08\x05",  # a length in more bytes than it needs
        b"\x08\x05\x10\x01\x7a\x03any",  # a field that this contract does not have
    ],
)
def test_any_protobuf_is_understood(caller, request_bytes):
    assert EchoRequest.FromString(request_bytes).output_bytes == 5
    (answer,) = caller.send(ECHO, request_bytes)
    assert answer == EchoResponse(payload=bytes(5)).SerializeToString()


def test_more_than_a_message_may_have_is_refused_before_it_is_made(caller):
    most = 2**31 - 1
    for wanted in (most + 1, most - 1, 2**62):
        with pytest.raises(grpc.RpcError) as caught:
            caller.stub.Echo(EchoRequest(output_bytes=wanted), timeout=60)
        text, found = checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
        assert "--max-message-bytes" in text
        assert set(found) == {"output_bytes"}


def test_a_negative_number_is_refused(caller):
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub.Echo(EchoRequest(output_bytes=-1), timeout=60)
    _, found = checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert set(found) == {"output_bytes"}
