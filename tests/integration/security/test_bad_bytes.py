"""Bytes that are no message, or too many: refused in order on every RPC, and the server goes on."""

import asyncio
import random

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convserve import AsyncClient, Client, RetryRule, TooLargeError
from convserve.v1 import activation_pb2, conv2d_pb2, initializer_pb2, regularizer_pb2
from convserve.v1 import convolution_service_pb2 as convolution
from convserve.v1 import layer_service_pb2 as stored
from tests.support.raw.calls import (
    RPCS,
    checked,
    conv2d,
    convolve_request,
    layer,
    plan_request,
    raw_caller,
    refused_as,
    weights,
)
from tests.support.servers.server_process import numpy_server

LIMIT = 2**22
POINT = np.zeros((1, 1, 1, 1024), "f4")
WIDE = np.zeros((1, 1, 1024, 1075), "f4")  # a kernel that travels with its call, in one message
ELEMENTS = np.array([1, 2], "<f4").tobytes()
NAMED = stored.StoredLayerReference(name="bad-bytes")
HEADER = stored.WeightsHeader(dtype=1, kernel_shape=(1, 1, 1, 2))
FULL = conv2d(
    filters=2,
    strides=conv2d_pb2.Size2D(height=1, width=1),
    padding=conv2d_pb2.Padding(explicit=conv2d_pb2.ExplicitPadding(top=1)),
    groups=1,
    activation=activation_pb2.Activation(relu=activation_pb2.ReluActivation(max_value=6)),
    kernel_initializer=initializer_pb2.Initializer(he_normal=initializer_pb2.FanInitializer(seed=7)),
    activity_regularizer=regularizer_pb2.Regularizer(l2=regularizer_pb2.L2Regularizer(l2=0.5)),
    name="named",
    dtype=1,
    input_shape=(2, 2, 1),
)
GIVEN = layer(FULL, weights=weights(np.ones((1, 1, 1, 2))))
# One valid exchange for each RPC, in an order in which all of them succeed.
VALID = {
    "GetServerInfo": [convolution.GetServerInfoRequest()],
    "Plan": [plan_request(GIVEN, layer(conv2d(filters=3)), input_dtype=1, output_dtype=4)],
    "Convolve": [convolve_request(GIVEN, layer(conv2d(filters=3)), output_dtype=4)],
    "ConvolveStream": [
        convolution.ConvolveStreamRequest(start=convolution.StreamStart(layers=[GIVEN])),
        convolution.ConvolveStreamRequest(item=convolution.StreamItem(dtype=1, shape=(1, 1, 2, 1))),
        convolution.ConvolveStreamRequest(piece=ELEMENTS),
    ],
    "Echo": [convolution.EchoRequest(output_bytes=3, payload=b"any")],
    "PutLayer": [
        stored.PutLayerRequest(start=stored.PutLayerStart(conv2d=FULL, name="bad-bytes", weights=HEADER)),
        stored.PutLayerRequest(piece=ELEMENTS),
    ],
    "GetLayer": [stored.GetLayerRequest(layer=NAMED)],
    "ListLayers": [stored.ListLayersRequest(page_size=1, name_prefix="bad")],
    "FindMissingLayers": [stored.FindMissingLayersRequest(digests=[bytes(32)])],
    "UpdateWeights": [
        stored.UpdateWeightsRequest(start=stored.UpdateWeightsStart(layer=NAMED, weights=HEADER)),
        stored.UpdateWeightsRequest(piece=ELEMENTS),
    ],
    "ReadWeights": [stored.ReadWeightsRequest(layer=NAMED)],
    "ListNameVersions": [stored.ListNameVersionsRequest(name="bad-bytes")],
    "MoveName": [stored.MoveNameRequest(move=stored.NameMove(name="bad-bytes", move_id=bytes(16)), layer=NAMED)],
    "DeleteLayer": [stored.DeleteLayerRequest(layer=NAMED)],
}
EVERY_RPC = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


@pytest.fixture(scope="module")
def limited():
    """A server that takes little, so that no damaged number keeps it busy."""
    with numpy_server("--max-message-bytes", str(LIMIT), "--max-call-bytes", "30000000") as running:
        yield running
        assert running.process.poll() is None, running.log.read_text()
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def caller(limited):
    with raw_caller(limited.target) as connected:
        yield connected


@pytest.fixture(autouse=True)
def unharmed(caller):
    """After each test the server is healthy and answers the same caller rightly."""
    yield
    caller.check_service()


def outcome(caller, rpc, *messages):
    """Returns "answered", or the reason with which an exchange is refused."""
    try:
        caller.send(rpc, *messages)
    except grpc.RpcError as failure:
        return refused_as(failure)
    return "answered"


def serialized(rpc):
    return [message.SerializeToString() for message in VALID[rpc.name]]


def test_a_valid_exchange_is_known_for_every_rpc(caller):
    by_name = {rpc.name: rpc for rpc in RPCS}
    assert set(VALID) == set(by_name)
    found = {name: outcome(caller, by_name[name], *serialized(by_name[name])) for name in VALID}
    assert set(found.values()) <= {"answered", "UNIMPLEMENTED"}
    assert [found[name] for name in ("GetServerInfo", "Plan", "Convolve")] == ["answered"] * 3


@EVERY_RPC
def test_every_truncated_message_is_answered_or_refused(caller, rpc):
    whole = serialized(rpc)
    outcomes = {
        outcome(caller, rpc, *whole[:index], message[:length])
        for index, message in enumerate(whole)
        for length in range(len(message))
    }
    if len(whole[0]) > 1 and outcomes != {"UNIMPLEMENTED"}:
        assert "INVALID_REQUEST" in outcomes


@EVERY_RPC
def test_random_bytes_are_answered_or_refused(caller, rpc):
    source = random.Random(rpc.name)
    outcomes = {outcome(caller, rpc, source.randbytes(source.randrange(1, 64))) for _ in range(100)}
    assert outcomes & {"INVALID_REQUEST", "UNIMPLEMENTED"}


@EVERY_RPC
def test_what_is_no_message_is_refused_as_such(caller, rpc):
    for nonsense in (b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f", b"\x0c", b"\x07", b"\0", b"\x0b" * 200):
        assert outcome(caller, rpc, nonsense) in ("INVALID_REQUEST", "UNIMPLEMENTED")


@EVERY_RPC
def test_a_stream_of_no_messages_or_too_many_is_refused_or_answered(caller, rpc):
    whole = serialized(rpc)
    if rpc.client_streaming:  # gRPC itself answers a unary call without a message
        assert outcome(caller, rpc) in ("INVALID_REQUEST", "UNIMPLEMENTED")
        assert outcome(caller, rpc, *whole, *whole) in ("INVALID_REQUEST", "LAYER_NOT_FOUND", "UNIMPLEMENTED")


@st.composite
def damaged(draw, whole):
    """Draws a valid message with some bytes changed, deleted, inserted, or moved."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "set", "delete", "insert", "move"]))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "delete" and len(data) > 8:
            del data[at : at + draw(st.integers(1, 3))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=3))
        else:
            data = data[at:] + data[:at]
    return bytes(data)


@pytest.mark.parametrize("name", ["Convolve", "Plan"])
@settings(max_examples=300, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_messages_are_answered_or_refused(caller, name, data):
    (rpc,) = (rpc for rpc in RPCS if rpc.name == name)
    outcome(caller, rpc, data.draw(damaged(VALID[name][0].SerializeToString())))


# Too many bytes


@pytest.fixture
def attempts(monkeypatch):
    """Counts how often a client considers to try again."""
    asked = []
    original = RetryRule.delay_s
    monkeypatch.setattr(RetryRule, "delay_s", lambda *arguments: asked.append(1) or original(*arguments))
    return asked


@pytest.mark.parametrize("rows", [1007, 1008, 1009, 1024])
def test_the_smallest_limit_takes_tensors_of_every_size(limited, rows):
    x = np.arange(rows * 1024, dtype="f4").reshape(1, rows, 1024, 1)  # about where the client begins to send pieces
    with Client(limited.target) as client:
        assert (client.conv2d(x, kernel=np.full((1, 1, 1, 1), 2, "f4")) == 2 * x).all()


def test_a_message_above_the_limit_is_too_large_and_not_sent_again(limited, attempts):
    with Client(limited.target) as client, pytest.raises(TooLargeError) as caught:
        client.conv2d(POINT, kernel=WIDE)
    assert f"Expected at most {LIMIT} bytes in one message, the server's --max-message-bytes." in str(caught.value)
    assert "Received a message of 44" in str(caught.value)
    assert len(attempts) == 1
    assert [each.field for each in caught.value.violations] == ["layers"]


def test_the_asyncio_client_says_the_same(limited, attempts):
    async def call():
        async with AsyncClient(limited.target) as client:
            await client.conv2d(POINT, kernel=WIDE)

    with pytest.raises(TooLargeError, match="--max-message-bytes"):
        asyncio.run(call())
    assert len(attempts) == 1


def test_a_response_above_the_limit_is_too_large_before_it_is_computed(limited):
    large = convolve_request(layer(conv2d(filters=2**18 + 1)))
    with raw_caller(limited.target) as caller, pytest.raises(grpc.RpcError) as caught:
        caller.stub.Convolve(large, timeout=60)
    text, _ = checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "TOO_LARGE")
    assert f"{LIMIT} bytes of response in one call, the server's --max-message-bytes. Received" in text


def test_a_client_does_not_meet_the_limit_with_tensors(limited):
    with Client(limited.target) as client:
        assert client.conv2d(np.zeros((1, 500, 501, 8), "f4"), 1, 1).shape == (1, 500, 501, 1)
        assert client.conv2d(np.zeros((1, 100, 100, 1), "f4"), 200, 1).shape == (1, 100, 100, 200)
