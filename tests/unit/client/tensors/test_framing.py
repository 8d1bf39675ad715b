"""The copy-free framing: its bytes are ordinary protobuf, and it reads all bytes as the stock parser reads them."""

import time

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from convserve import InvalidTensorError
from convserve.tensors import framing
from convserve.tensors.codec import decode, encode, numpy_dtype
from convserve.v1 import conv2d_pb2, layer_pb2, tensor_pb2
from convserve.v1.convolution_service_pb2 import ConvolveRequest, EchoRequest
from tests.support.raw.wire_fields import field, varint

DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8", "int8")


def group(number, content=b""):
    """Returns a field in proto2's old form, between two tags."""
    return varint(number << 3 | 3) + content + varint(number << 3 | 4)


def stock(data):
    """Returns what the stock parser and the tensor codec make of a request's bytes: the oracle."""
    message = ConvolveRequest.FromString(data)
    tensor = message.input
    if not message.HasField("input") or (tensor.HasField("shared_memory") and not tensor.data):
        return message, None
    array = decode(message.input, "input")
    message.ClearField("input")
    return message, array


def fast(data):
    return framing.read(ConvolveRequest, "input", data)


def outcome(read, data):
    """Returns everything that a reader says of some bytes, in a form that can be compared."""
    try:
        message, array = read(data)
    except InvalidTensorError as error:
        return "refused", str(error)
    except DecodeError:
        return "no message"
    # Serialized, because a message's == knows neither unknown fields nor NaN.
    tensor = None if array is None else (array.dtype, array.shape, array.tobytes())
    return message.SerializeToString(deterministic=True), tensor


HEAD = ConvolveRequest(output_dtype=1).SerializeToString()
DATA = np.arange(6, dtype="<f4").tobytes()
DTYPE, SHAPE = varint(1 << 3) + varint(1), field(2, bytes([2, 3]))
TENSOR = DTYPE + SHAPE + field(15, DATA)
ARRAY = np.arange(6, dtype="<f4").reshape(2, 3)

REFERENCES = st.one_of(
    st.builds(layer_pb2.LayerReference, digest=st.binary(max_size=40)),
    st.builds(layer_pb2.LayerReference, name=st.text(max_size=8)),
    st.builds(
        lambda filters, name: layer_pb2.LayerReference(
            inline=layer_pb2.InlineLayer(conv2d=conv2d_pb2.Conv2D(filters=filters, name=name))
        ),
        st.integers(-(2**31), 2**31 - 1),
        st.text(max_size=8),
    ),
)
MESSAGES = st.builds(ConvolveRequest, layers=st.lists(REFERENCES, max_size=3), output_dtype=st.integers(-1, 9))


@st.composite
def arrays(draw):
    dtype = numpy_dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    elements = draw(st.randoms(use_true_random=False)).randbytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(elements, dtype).reshape(shape)


# Writing


@given(MESSAGES, arrays())
def test_what_is_written_is_the_same_message_to_the_stock_parser(message, array):
    whole = ConvolveRequest()
    whole.CopyFrom(message)
    whole.input.CopyFrom(encode(array))
    parsed = ConvolveRequest.FromString(framing.write(message, array))
    assert parsed == whole
    assert parsed.input.data == array.tobytes()


@pytest.mark.parametrize("length", [1, 127, 128, 129, 16383, 16384, 2**21 - 1, 2**21])
def test_lengths_around_each_size_of_varint_survive(length):
    array = np.arange(length, dtype="u1")
    message, read = fast(framing.write(ConvolveRequest(output_dtype=1), array))
    assert message == ConvolveRequest(output_dtype=1)
    assert np.array_equal(read, array)


def test_a_read_only_array_is_written():
    array = np.arange(4, dtype="f4")
    array.flags.writeable = False
    assert ConvolveRequest.FromString(framing.write(ConvolveRequest(), array)).input.data == array.tobytes()


# Reading


@given(MESSAGES, arrays())
def test_what_the_stock_serializer_writes_is_read_equally(message, array):
    whole = ConvolveRequest()
    whole.CopyFrom(message)
    whole.input.CopyFrom(encode(array))
    data = whole.SerializeToString()
    assert outcome(fast, data) == (message.SerializeToString(), (array.dtype, array.shape, array.tobytes()))


@pytest.mark.parametrize(
    "before",
    [
        b"",
        HEAD,
        pytest.param(varint(99 << 3) + varint(2**64 - 1), id="varint"),
        pytest.param(varint(99 << 3 | 1) + bytes(8), id="64 bits"),
        pytest.param(varint(99 << 3 | 5) + bytes(4), id="32 bits"),
        pytest.param(field(99, b"\x7a\x01"), id="bytes that look like a tag"),
    ],
)
def test_reading_copies_nothing_whatever_stands_before_the_tensor(before):
    data = before + framing.write(ConvolveRequest(), np.arange(1000, dtype="f4"))
    _, array = fast(data)
    assert np.shares_memory(array, np.frombuffer(data, "u1"))
    assert not array.flags.writeable


def test_a_message_without_a_tensor_has_none():
    assert fast(ConvolveRequest(output_dtype=2).SerializeToString()) == (ConvolveRequest(output_dtype=2), None)
    assert fast(b"") == (ConvolveRequest(), None)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(HEAD + field(15, TENSOR), id="as we write it"),
        pytest.param(field(15, TENSOR) + HEAD, id="tensor first"),
        pytest.param(HEAD + field(15, field(15, DATA) + SHAPE + DTYPE), id="elements first"),
        pytest.param(HEAD + field(15, DTYPE + field(15, b"old") + SHAPE + field(15, DATA)), id="elements twice"),
        pytest.param(HEAD + field(15, DTYPE + SHAPE) + field(15, field(15, DATA)), id="tensor in two parts"),
        pytest.param(HEAD + field(15, TENSOR) + field(15, b""), id="an empty tensor last"),
        pytest.param(field(15, field(15, DATA)) + HEAD + field(15, DTYPE + SHAPE), id="elements in the first part"),
        pytest.param(HEAD + field(16, b"new") + field(15, TENSOR), id="unknown field above 15 before it"),
        pytest.param(HEAD + field(15, TENSOR) + field(16, b"new"), id="unknown field above 15 after it"),
        pytest.param(HEAD + field(15, TENSOR + field(99, b"new")), id="unknown field after the elements"),
        pytest.param(HEAD + varint(15 << 3) + varint(7) + field(15, TENSOR), id="field 15 of another wire type"),
        pytest.param(HEAD + group(99, field(15, b"not it")) + field(15, TENSOR), id="a group before it"),
        pytest.param(HEAD + field(15, group(3) + TENSOR), id="a group in the tensor"),
        pytest.param(HEAD + field(15, TENSOR) + group(99), id="a group after it"),
        pytest.param(HEAD + field(15, TENSOR, tag_bytes=2), id="long tag"),
        pytest.param(HEAD + field(15, TENSOR, length_bytes=4), id="long length"),
        pytest.param(HEAD + field(15, DTYPE + SHAPE + field(15, DATA, 2, 3)), id="long tag and length of the elements"),
        pytest.param(HEAD + field(15, DTYPE + varint(2 << 3) + b"\2" + varint(2 << 3) + b"\3" + field(15, DATA)),
                     id="a shape that is not packed"),
        pytest.param((varint(3 << 3) + b"\1") * 20_000 + HEAD + field(15, TENSOR), id="more fields than any message"),
    ],
)  # fmt: skip
def test_every_protobuf_form_of_a_message_is_read_alike(data):
    message, array = fast(data)
    assert message.output_dtype == 1
    assert array is not None
    assert np.array_equal(array, ARRAY)
    assert outcome(fast, data) == outcome(stock, data)


def test_tensors_that_occur_twice_are_merged_as_protobuf_does():
    twice = field(15, DTYPE + field(2, bytes([2]))) + field(15, field(2, bytes([3])) + field(15, DATA))
    assert np.array_equal(fast(twice)[1], ARRAY)
    # The shapes are joined, so that a second complete tensor does not replace the first: 2 x 3 x 2 x 3 elements.
    with pytest.raises(InvalidTensorError, match="Expected 144 bytes"):
        fast(field(15, TENSOR) + field(15, TENSOR))


LENGTHS_THAT_LIE = [2**7, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70]


@pytest.mark.parametrize("length", LENGTHS_THAT_LIE)
@pytest.mark.parametrize("number", [1, 15, 16])
@pytest.mark.parametrize("around", [lambda lie: lie, lambda lie: field(15, DTYPE + SHAPE + lie)])
def test_a_length_beyond_the_end_is_no_message(length, number, around):
    lie = varint(number << 3 | 2) + varint(length) + b"\0" * 10
    for data in (HEAD + around(lie), HEAD + around(lie) + field(15, TENSOR)):
        assert outcome(fast, data) == outcome(stock, data) == "no message"


@pytest.mark.parametrize("tag_bytes", range(1, 12))
def test_only_tags_that_protobuf_allows_are_read(tag_bytes):
    data = HEAD + field(15, TENSOR, tag_bytes=tag_bytes)
    assert outcome(fast, data) == outcome(stock, data)
    assert (outcome(fast, data) == "no message") == (tag_bytes > 5)


def test_every_prefix_of_a_message_is_read_as_the_stock_parser_reads_it():
    data = framing.write(ConvolveRequest.FromString(HEAD), ARRAY)
    outcomes = [outcome(fast, data[:length]) for length in range(len(data))]
    assert outcomes == [outcome(stock, data[:length]) for length in range(len(data))]
    assert "no message" in outcomes


# Random bytes against the oracle

NUMBERS = st.sampled_from([0, 1, 2, 3, 14, 15, 15, 15, 16, 31, 2**29 - 1])
LONG = st.sampled_from([1, 1, 1, 1, 2, 5, 6, 10, 11])


def raw_fields(content):
    """Returns a strategy of fields one after the other, in every form and order that the wire allows, and some more."""
    one = st.one_of(
        st.builds(field, NUMBERS, content, LONG, LONG),
        st.builds(lambda number, value, long: varint(number << 3) + varint(value, long), NUMBERS,
                  st.integers(0, 2**65), LONG),
        st.builds(lambda number, value: varint(number << 3 | 5) + value, NUMBERS, st.binary(min_size=4, max_size=4)),
        st.builds(lambda number, value: varint(number << 3 | 1) + value, NUMBERS, st.binary(min_size=8, max_size=8)),
        st.builds(group, NUMBERS, content),
        st.sampled_from([DTYPE, SHAPE, field(15, DATA), field(15, TENSOR)]),
    )  # fmt: skip
    return st.lists(one, max_size=5).map(b"".join)


@given(raw_fields(st.one_of(raw_fields(st.binary(max_size=24)), st.binary(max_size=24))))
@example(field(15, TENSOR) + field(15, TENSOR))
@example(field(15, DTYPE + SHAPE + field(3, b"") + field(15, DATA)))  # elements beside a place in shared memory
@example(field(15, DTYPE + SHAPE + field(3, b"") + field(15, b"")))
def test_fields_in_any_form_and_order_are_read_as_the_stock_parser_reads_them(data):
    assert outcome(fast, data) == outcome(stock, data)


@st.composite
def damaged(draw):
    """Draws a valid frame with some bytes flipped, deleted, inserted or repeated."""
    data = bytearray(framing.write(draw(MESSAGES), draw(arrays())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "delete", "insert", "repeat"]))
        if kind == "flip" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 4))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        else:
            data += data[at:]
    return bytes(data)


@given(damaged())
def test_damaged_frames_are_read_as_the_stock_parser_reads_them(data):
    assert outcome(fast, data) == outcome(stock, data)


def test_a_message_of_a_million_fields_keeps_nobody_busy():
    data = (varint(3 << 3) + b"\1") * 2_000_000 + field(15, tensor_pb2.Tensor().SerializeToString())
    started = time.process_time()
    assert outcome(fast, data) == outcome(stock, data)
    assert time.process_time() - started < 1


# The rest of a message, without its payload


@given(st.integers(0, 2**63 - 1), st.binary(max_size=300))
def test_a_head_is_what_stands_beside_the_payload(number, payload):
    written = EchoRequest(output_bytes=number).SerializeToString() + framing.opening(len(payload)) + payload
    assert EchoRequest.FromString(written) == EchoRequest(output_bytes=number, payload=payload)
    assert framing.head(EchoRequest, written) == EchoRequest(output_bytes=number)


@pytest.mark.parametrize("data", [b"", b"\x08\x07", field(15, b"any") + b"\x08\x07", field(15, b"\x7a\x01")])
def test_a_head_is_found_in_every_form(data):
    assert framing.head(EchoRequest, data).output_bytes == EchoRequest.FromString(data).output_bytes


@pytest.mark.parametrize("data", [b"\x7a\x05any", b"\x08", b"\xff" * 12])
def test_a_head_of_what_is_no_message_is_none(data):
    with pytest.raises(DecodeError):
        framing.head(EchoRequest, data)
