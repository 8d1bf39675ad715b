"""Inference's framing: its bytes are ordinary protobuf, and it reads all bytes as the stock parser reads them."""

import time

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import SERVICE, InferRequest, InferResponse
from tests.support.raw.wire_fields import field, varint

HEAD = messages.ModelInferRequest(
    model_name="a",
    id="7",
    inputs=[messages.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[1, 2, 3, 1])],
).SerializeToString()
OUTPUT = np.arange(6, dtype="f4").reshape(1, 2, 3, 1)


def stock(data):
    """Returns what the stock parser makes of a request: the oracle."""
    try:
        message = messages.ModelInferRequest.FromString(data)
    except DecodeError:
        return "no message"
    raw = list(message.raw_input_contents)
    message.ClearField("raw_input_contents")
    return message.SerializeToString(deterministic=True), raw


def fast(data):
    try:
        request = InferRequest.parse(data)
    except DecodeError:
        return "no message"
    message, raw = messages.ModelInferRequest(), [bytes(each) for each in request.raw]
    message.CopyFrom(request.message)
    message.ClearField("raw_input_contents")
    return message.SerializeToString(deterministic=True), raw


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        field(7, b"abc"),
        HEAD + field(7, b"abc"),
        HEAD + field(7, b"abc") + field(7, b"") + field(7, b"d" * 300),
        field(7, b"abc") + HEAD,
        HEAD + field(7, b"abc") + HEAD + field(7, b"def"),
        HEAD + field(7, b"abc", tag_bytes=2),
        HEAD + field(7, b"abc", length_bytes=3),
        HEAD + field(7, b"abc") + field(7, b"abc", length_bytes=3),
        HEAD + field(7, b"abc") + field(8, b"unknown"),
        HEAD + field(8, b"unknown") + field(7, b"abc"),
        HEAD + varint(7 << 3) + varint(5) + field(7, b"abc"),
        HEAD + field(7, b"abc") + varint(7 << 3) + varint(5),
        HEAD + varint(9 << 3 | 3) + field(7, b"in a group") + varint(9 << 3 | 4) + field(7, b"abc"),
        HEAD + field(7, b"abc")[:-1],
        HEAD + field(7, b"abc") + varint(7 << 3 | 2) + varint(2**63),
        HEAD + varint(7 << 3 | 2),
        field(1, b"\xff") + field(7, b"no UTF-8 before"),
    ],
)
def test_every_form_of_a_request_is_read_as_the_stock_parser_reads_it(data):
    assert fast(data) == stock(data)


NUMBERS = st.sampled_from([0, 1, 4, 5, 6, 7, 7, 7, 8, 15, 2**29 - 1])
LONG = st.sampled_from([1, 1, 1, 2, 5, 6, 10, 11])
FIELDS = st.one_of(
    st.builds(field, NUMBERS, st.binary(max_size=12), LONG, LONG),
    st.builds(lambda number, value: varint(number << 3) + varint(value), NUMBERS, st.integers(0, 2**65)),
    st.builds(lambda number, value: varint(number << 3 | 5) + value, NUMBERS, st.binary(min_size=4, max_size=4)),
    st.builds(lambda number, value: varint(number << 3 | 1) + value, NUMBERS, st.binary(min_size=8, max_size=8)),
    st.builds(lambda number, kind: varint(number << 3 | kind), NUMBERS, st.sampled_from([3, 4, 6, 7])),
    st.sampled_from([HEAD, field(7, b"abc")]),
)


@given(st.lists(FIELDS, max_size=6).map(b"".join))
@example(field(7, b"") + field(7, b""))
def test_fields_in_any_form_and_order_are_read_alike(data):
    assert fast(data) == stock(data)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_alike(data):
    assert fast(HEAD + data) == stock(HEAD + data)
    assert fast(data) == stock(data)


def test_reading_copies_nothing():
    data = HEAD + field(7, bytes(1000)) + field(7, bytes(2000))
    for each in InferRequest.parse(data).raw:
        assert np.shares_memory(np.frombuffer(each, "u1"), np.frombuffer(data, "u1"))


def test_a_request_of_a_million_fields_keeps_nobody_busy():
    for data in (field(7, b"") * 1_000_000, (varint(20 << 3) + b"\1") * 1_000_000 + field(7, b"abc")):
        started = time.process_time()
        assert fast(data) == stock(data)
        assert time.process_time() - started < 5


@pytest.mark.parametrize("output", [OUTPUT, None])
def test_a_response_is_the_same_message_to_the_stock_parser(output):
    head = messages.ModelInferResponse(model_name="a", id="7")
    whole = messages.ModelInferResponse(model_name="a", id="7", raw_output_contents=[OUTPUT.tobytes()])
    if output is None:
        whole.raw_output_contents[0] = b""  # one for each output
    response = InferResponse(head, output)
    assert messages.ModelInferResponse.FromString(response.serialize()) == whole
    assert messages.ModelStreamInferResponse.FromString(response.serialize_in_stream()).infer_response == whole


def test_the_service_has_its_true_name_beside_the_private_messages():
    assert SERVICE.full_name == "inference.GRPCInferenceService"
    assert {each.input_type.full_name.rpartition(".")[0] for each in SERVICE.methods} == {"inference"}
    for method in SERVICE.methods:
        for described in (method.input_type, method.output_type):
            ours = getattr(messages, described.name).DESCRIPTOR
            assert [(each.name, each.number) for each in ours.fields] == [
                (each.name, each.number) for each in described.fields
            ]
            assert ours.full_name.startswith("convserve_server.open_inference.v2.")
