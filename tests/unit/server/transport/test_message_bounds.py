"""Bounds of messages: what parses to many times its bytes is refused by a count, what has tensors is not counted."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from convserve import TooLargeError
from convserve.v1 import conv2d_pb2, layer_pb2
from convserve.v1.convolution_service_pb2 import ConvolveRequest, ConvolveStreamRequest
from convserve.v1.tensor_pb2 import Tensor
from convserve_server.transport.message_bounds import MAX_OTHER_BYTES, MessageBound
from tests.support.raw.wire_fields import field, varint

MAX_FIELDS = 2**15
BOUND = MessageBound(MAX_FIELDS, ConvolveRequest.DESCRIPTOR)
INLINE = layer_pb2.LayerReference(inline=layer_pb2.InlineLayer(conv2d=conv2d_pb2.Conv2D()))


def size(data: bytes) -> int:
    """Returns how many bytes of a message are looked at, as far as a bound goes."""

    class Watched(bytes):
        looked = 0

        def __getitem__(self, at):
            Watched.looked += 1
            return super().__getitem__(at)

    watched = Watched(data)
    BOUND.check(watched)
    return Watched.looked


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param(field(1, b""), id="layers"),
        pytest.param(ConvolveRequest(layers=[INLINE]).SerializeToString(), id="layers with a configuration"),
        pytest.param(field(1, field(3, field(1, b""))), id="whatever a layer has"),
        pytest.param(field(15, field(15, b"")), id="tensors"),
        pytest.param(varint(2 << 3) + varint(1), id="numbers"),
        pytest.param(varint(2 << 3, 5) + varint(1, 10), id="numbers in a long form"),
        pytest.param(varint(99 << 3 | 5) + bytes(4), id="unknown numbers"),
        pytest.param(field(99, b""), id="unknown texts"),
    ],
)
def test_a_message_of_many_fields_is_refused_wherever_they_are(unit: bytes) -> None:
    data = unit * (2**21 // len(unit))
    for sent in (data, field(1, data), field(1, field(3, data))):
        with pytest.raises(TooLargeError, match=f"at most {MAX_FIELDS} fields"):
            BOUND.check(sent)
    BOUND.check(unit * (2**15 // len(unit)))


def test_a_message_within_a_message_of_the_same_type_is_counted() -> None:
    bound, inner = MessageBound(MAX_FIELDS, Struct.DESCRIPTOR), b""
    for _ in range(40):
        inner = field(1, field(2, field(5, inner)))
    with pytest.raises(TooLargeError, match=f"at most {MAX_FIELDS} fields"):
        bound.check(inner * 1000)


def test_texts_and_lists_of_numbers_are_bounded_and_tensors_are_not() -> None:
    BOUND.check(ConvolveRequest(input=Tensor(data=bytes(2 * MAX_OTHER_BYTES))).SerializeToString())
    shape = field(15, field(2, b"\x01" * (MAX_OTHER_BYTES + 1)))
    name = ConvolveRequest(layers=[layer_pb2.LayerReference(name="a" * (MAX_OTHER_BYTES + 1))]).SerializeToString()
    for bound, data in (
        *(
            (BOUND, data)
            for data in (shape, name, field(99, bytes(MAX_OTHER_BYTES + 1)), field(99, name[:99_999]) * 50)
        ),
        (MessageBound(1), field(1, bytes(MAX_OTHER_BYTES + 1))),
    ):
        with pytest.raises(TooLargeError, match=f"at most {MAX_OTHER_BYTES} bytes beside those of tensors"):
            bound.check(data)


def test_the_elements_of_tensors_are_not_looked_at() -> None:
    weights = layer_pb2.Weights(kernel=Tensor(dtype=1, shape=(512, 512), data=bytes(2**20)))
    inline = layer_pb2.LayerReference(inline=layer_pb2.InlineLayer(conv2d=conv2d_pb2.Conv2D(), weights=weights))
    request = ConvolveRequest(layers=[inline], input=Tensor(dtype=1, shape=(1, 1, 1, 2**20), data=bytes(2**22)))
    assert size(request.SerializeToString()) < 100
    assert size(ConvolveRequest(input=request.input).SerializeToString()[:60_000]) == 0
    MessageBound(1, ConvolveStreamRequest.DESCRIPTOR).check(
        ConvolveStreamRequest(piece=bytes(2**22)).SerializeToString()
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(field(1, b"\x00" * 100_000)[:-1], id="cut"),
        pytest.param(field(1, field(1, bytes(100_000))[:-1] + b""), id="cut within a message"),
        pytest.param(field(2, bytes(100_000)) + b"\x0b", id="a group"),
        pytest.param(field(2, bytes(100_000)) + b"\x0f", id="no kind of field"),
        pytest.param(field(2, bytes(100_000)) + b"\x10" + b"\x80" * 1_000_000, id="an endless number"),
        pytest.param(b"\xff" * 1_000_000, id="an endless tag"),
        pytest.param(field(2, bytes(100_000)) + b"\x0a" + b"\xff" * 9 + b"\x01", id="a length beyond the end"),
    ],
)
def test_what_is_no_message_is_told_as_such(data: bytes) -> None:
    with pytest.raises(DecodeError):
        BOUND.check(data)
