"""ConvolveStream as any language would call it: with generated stubs, and with what no honest caller sends."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from convserve.tensors import framing
from convserve.v1.conv2d_pb2 import Padding, Size2D
from convserve.v1.convolution_service_pb2 import ConvolveStreamRequest, ConvolveStreamResponse
from tests.support.raw.calls import conv2d, layer, raw_caller, weights
from tests.support.raw.streams import Feed, answers, expected, image, item, opening, piece, start

AS_COMPLETED = 2
PATH = "/convserve.v1.ConvolutionService/ConvolveStream"


@pytest.fixture
def caller(server):
    """A caller, after whom the server must still be well."""
    with raw_caller(server.target) as connected:
        yield connected
        connected.check_service()


def exchanged(caller, *messages, **options):
    """Returns the answers to messages or iterables of them."""
    listed = itertools.chain.from_iterable(
        [each] if isinstance(each, ConvolveStreamRequest) else each for each in messages
    )
    return answers(caller.stub.ConvolveStream(listed, timeout=60, **options))


def assert_right(found, inputs):
    """Asserts that every item is answered, in this order, rightly."""
    assert list(found) == list(inputs)
    for number, x in inputs.items():
        np.testing.assert_array_equal(found[number], expected(x))


# What callers may send


@pytest.mark.parametrize("piece_bytes", [1, 7, 48, 49, 2**20])
def test_pieces_of_any_length(caller, piece_bytes):
    inputs = {number: image(number, 1, 2, 2 + number, 1) for number in range(5)}
    assert_right(exchanged(caller, start(), *(item(*each, piece_bytes) for each in inputs.items())), inputs)


def test_empty_pieces_anywhere_in_an_item(caller):
    x = image(1)
    data = x.tobytes()
    empty = piece(b"")
    messages = [opening(5, *x.shape), empty, empty, piece(data[:9]), empty, piece(data[9:]), empty]
    assert_right(exchanged(caller, start(), *messages), {5: x})
    assert_right(exchanged(caller, start(), *messages, opening(-7, *x.shape), piece(data)), {5: x, -7: x})


def test_numbers_are_the_callers(caller):
    inputs = {number: image(3) for number in (7, 0, -1, 2**63 - 1, -(2**63))}
    assert_right(exchanged(caller, start(), *itertools.starmap(item, inputs.items())), inputs)


def test_a_stream_without_items(caller):
    assert exchanged(caller, start()) == {}


@pytest.mark.parametrize("wished", [-1, 0, 1, 2**14, 100_000, 2**31 - 1])
def test_the_length_of_the_answers_pieces_is_the_callers_wish_within_bounds(caller, wished):
    x = image(0, 1, 500, 500, 1)
    call = caller.stub.ConvolveStream(iter([start(piece_bytes=wished), *item(1, x)]), timeout=60)
    got = list(call)
    assert_right(answers(got), {1: x})
    longest = max(len(each.piece) for each in got)
    assert longest == min(max(wished or 2**21, 2**14), 2 * x.nbytes) if wished else longest <= 2**24


def test_all_that_the_start_says_is_heeded(caller):
    drawn = layer(conv2d(filters=3))
    (result, *_), (again, *_) = (
        list(caller.stub.ConvolveStream(iter([start(*layers, output_dtype=4), *item(1, image(0))]), timeout=60))
        for layers in ([drawn, layer()], [layer(), drawn])
    )
    assert result.result.output.dtype == 4
    assert [each.HasField("conv2d") for each in result.result.layers] == [True, True]
    assert list(again.result.output.shape) == [1, 3, 4, 3]


def test_stubs_and_frames_write_and_read_the_same(caller):
    """The bytes of `frame` and of the generated stubs, each way, are the same bytes."""
    x = image(0, 1, 64, 64, 1)
    messages = [start(piece_bytes=2**14), *item(1, x, 1000), *item(0, x, 1000)]
    written = [
        framing.write_piece(b"", memoryview(each.piece))
        if each.WhichOneof("message") == "piece"
        else each.SerializeToString()
        for each in messages
    ]
    assert written == [each.SerializeToString() for each in messages]
    raw = list(caller.channel.stream_stream(PATH)(iter(written), timeout=60))
    assert_right(answers(map(ConvolveStreamResponse.FromString, raw)), {1: x, 0: x})
    for data in raw:
        message = ConvolveStreamResponse.FromString(data)
        if message.WhichOneof("message") == "piece":
            head, elements = framing.read_piece(data)
            assert (ConvolveStreamResponse.FromString(head).item_id, elements) == (message.item_id, message.piece)
        else:
            assert framing.read_piece(data) is None


def test_a_piece_in_any_encoding_is_one(caller):
    """Fields in another order, tags and lengths in more bytes: what stock protobuf reads."""
    data = image(0).tobytes()
    first = start().SerializeToString()
    opened = opening(1, 1, 3, 4, 1).SerializeToString()
    one, other = data[:16], data[16:]
    odd = [
        b"\x7a\x90\x80\x00" + one,  # the length in more bytes than it needs
        opening(9, 1).SerializeToString() + b"\x7a\x20" + other,  # another of the oneof before: the last one counts
    ]
    assert [ConvolveStreamRequest.FromString(each).piece for each in odd] == [one, other]
    raw = caller.channel.stream_stream(PATH)(iter([first, opened, *odd]), timeout=60)
    assert_right(answers(map(ConvolveStreamResponse.FromString, raw)), {1: image(0)})


# The order of answers


def test_answers_come_as_they_are_completed_if_that_is_asked_for(caller):
    """Items that are refused are so at once; those that are computed come when they are."""
    inputs = {number: image(number) for number in range(20)}
    found = exchanged(caller, start(order=AS_COMPLETED), *itertools.starmap(item, inputs.items()))
    assert_right({number: found[number] for number in sorted(found)}, inputs)


def slow_start(**changes):
    """Returns the start of a stream whose large items take a while."""
    window = Size2D(height=29, width=29)
    wide = layer(
        conv2d(filters=64, kernel_size=window, padding=Padding(mode=2)), weights=weights(np.ones((29, 29, 1, 64)))
    )
    return start(wide, layer(conv2d(), weights=weights(np.ones((1, 1, 64, 1)))), **changes)


@pytest.mark.parametrize(("order", "first"), [(0, 1), (1, 1), (AS_COMPLETED, 2)])
def test_a_quick_item_after_a_slow_one(caller, order, first):
    """A refusal is quick, and a convolution of a large image is not."""
    feed = Feed(slow_start(order=order), *item(1, image(0, 1, 400, 400, 1)), opening(2, 1, 4, 4, 9), piece(bytes(576)))
    feed.end()
    got = list(caller.stub.ConvolveStream(iter(feed), timeout=60))
    heads = [each.item_id for each in got if each.WhichOneof("message") != "piece"]
    assert heads == [first, 3 - first]


def test_each_item_is_answered_before_the_next_one_is_sent(caller):
    feed = Feed(start())
    call = caller.stub.ConvolveStream(iter(feed), timeout=60)
    assert ("convserve-start", "accepted") in [tuple(each) for each in call.initial_metadata()]
    for number in range(3):
        x = image(number)
        feed.send(*item(number, x))
        assert_right(answers(itertools.islice(call, 2)), {number: x})
    feed.end()
    assert list(call) == []


def test_many_streams_at_once(caller):
    inputs = {number: image(number, 1 + number % 3, 40, 30, 1) for number in range(12)}
    with ThreadPoolExecutor(16) as senders:
        streams = [
            senders.submit(exchanged, caller, start(), *itertools.starmap(item, inputs.items())) for _ in range(16)
        ]
    for each in streams:
        assert_right(each.result(), inputs)
