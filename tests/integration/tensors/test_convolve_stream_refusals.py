"""What ConvolveStream refuses: an item, with which the stream goes on, or the stream; and callers that just leave."""

import itertools

import grpc
import numpy as np
import pytest

import convserve
from convserve.protocol.status import from_item_error
from convserve.v1.conv2d_pb2 import Padding, Size2D
from convserve.v1.convolution_service_pb2 import ConvolveStreamRequest
from convserve.v1.layer_pb2 import LayerReference
from tests.support.processes import forget_peak, status
from tests.support.raw.calls import checked, conv2d, layer, raw_caller, weights
from tests.support.raw.streams import Feed, answers, expected, image, item, opening, piece, start
from tests.support.servers.server_process import numpy_server, running_server
from tests.support.waiting import eventually

PATH = "/convserve.v1.ConvolutionService/ConvolveStream"
MIB = 2**20
X = image(0)
DATA = X.tobytes()


@pytest.fixture(scope="module")
def limited():
    """A server that takes calls up to a size."""
    with running_server("--max-call-bytes", str(200 * MIB)) as running:
        yield running
        assert running.stop() == 0
        assert running.log_lines == []


@pytest.fixture
def caller(limited):
    """A caller, after whom the server must still be well."""
    with raw_caller(limited.target) as connected:
        yield connected
        connected.check_service()


# Items that are refused

BAD_ITEMS = {
    "dtype": (opening(1, 1, 3, 4, 1, dtype=99), "INVALID_TENSOR"),
    "no dtype": (opening(1, 1, 3, 4, 1, dtype=0), "INVALID_TENSOR"),
    "negative dtype": (opening(1, 1, 3, 4, 1, dtype=-(2**31)), "INVALID_TENSOR"),
    "rank": (opening(1, 3, 4, 1), "INVALID_TENSOR"),
    "no shape": (opening(1), "INVALID_TENSOR"),
    "channels": (opening(1, 1, 3, 2, 2), "INVALID_WEIGHTS"),
    "an empty batch": (opening(1, 0, 3, 4, 1), "INVALID_TENSOR"),
    "a negative dimension": (opening(1, -1, 3, -4, 1), "INVALID_TENSOR"),
    "2**63 elements": (opening(1, 2**31, 2**31, 2, 1), "INVALID_TENSOR"),
    "2**252 elements": (opening(1, *[2**63 - 1] * 4), "INVALID_TENSOR"),
    "100,000 dimensions": (opening(1, *[2**63 - 1] * 10**5), "INVALID_TENSOR"),
    "bytes above the limit": (opening(1, 1, 10_000, 10_000, 1), "TOO_LARGE"),
    "bytes above any machine's": (opening(1, 1, 2**31, 2**25, 1), "TOO_LARGE"),
}
PIECES = {
    "with its pieces": [piece(DATA)],
    "without": [],
    "with some": [piece(DATA[:5]), piece(b"")],
    "with more": [piece(DATA + DATA), piece(b""), piece(DATA)],
}


@pytest.mark.parametrize(("opened", "reason"), BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_an_item_that_is_refused_is_answered_so_and_the_stream_goes_on(caller, opened, reason):
    for pieces in PIECES.values():
        feed = Feed(start(), *item(0, X), opened, *pieces, *item(2, X), opened_as(3, opened), *pieces)
        feed.end()
        found = answers(caller.stub.ConvolveStream(iter(feed), timeout=60))
        assert list(found) == [0, 1, 2, 3]
        for number in (0, 2):
            np.testing.assert_array_equal(found[number], expected(X))
        for number in (1, 3):
            error = from_item_error(found[number])
            kinds = {
                "INVALID_TENSOR": convserve.InvalidTensorError,
                "INVALID_WEIGHTS": convserve.InvalidWeightsError,
                "TOO_LARGE": convserve.TooLargeError,
            }
            assert type(error) is kinds[reason]
            for each in error.violations:
                assert each.description.startswith("Expected ")
                assert "Received " in each.description


def opened_as(number, opened):
    """Returns the same opening of an item with another number."""
    changed = ConvolveStreamRequest()
    changed.CopyFrom(opened)
    changed.item.item_id = number
    return changed


def test_a_refusal_does_not_wait_for_the_items_pieces(caller):
    feed = Feed(start(), opening(7, 1, 10_000, 10_000, 1))
    call = caller.stub.ConvolveStream(iter(feed), timeout=60)
    answer = next(call)
    assert (answer.item_id, answer.WhichOneof("message")) == (7, "error")
    feed.send(*[piece(bytes(MIB))] * 10, *item(8, X))
    feed.end()
    np.testing.assert_array_equal(answers(call)[8], expected(X))


def test_an_item_above_the_limit_takes_no_memory(limited, caller):
    caller.check_service()
    forget_peak(limited.process.pid)
    before = status(limited.process.pid, "VmRSS")
    feed = Feed(start(), opening(1, 1, 10_000, 10_000, 1), *[piece(bytes(MIB))] * 380)
    feed.end()
    assert list(answers(caller.stub.ConvolveStream(iter(feed), timeout=60))) == [1]
    assert status(limited.process.pid, "VmHWM") - before < 150 * MIB


# Streams that are refused


def refused(caller, messages, reason, code=grpc.StatusCode.INVALID_ARGUMENT):
    """Returns what came before a stream was refused, the refusal's text, and the call."""
    call = caller.stub.ConvolveStream(iter(messages), timeout=60)
    got = []
    with pytest.raises(grpc.RpcError) as caught:
        got.extend(call)
    return got, checked(caught.value, code, reason)[0], call


OPENED = opening(2, 1, 3, 4, 1)
OUT_OF_ORDER = {
    "a second start": ([start()], "Expected an item. Received start."),
    "nothing set": ([ConvolveStreamRequest()], "Expected an item. Received nothing."),
    "a piece that is too long": ([OPENED, piece(DATA + b"\0")], "Expected 48 more bytes of an item. Received another"),
    "a second one that is": ([OPENED, piece(DATA[:40]), piece(DATA)], "Expected 8 more bytes of an item. Received"),
    "a piece after the last one": ([OPENED, piece(DATA), piece(b"\0")], "Expected an item. Received a piece."),
    "an item before the last one is complete": ([OPENED, piece(DATA[:40]), opening(3, 1)], "Expected 8 more bytes of"),
    "an item before its predecessor has any": ([OPENED, opening(3, 1, 3, 4, 1)], "Expected 48 more bytes of an item"),
    "a start within an item": ([OPENED, start()], "Expected 48 more bytes of an item. Received another message"),
    "the end within an item": (
        [OPENED, piece(DATA[:40])],
        "Expected 8 more bytes of an item. Received the stream's end",
    ),
    "the end after an item's head": ([OPENED], "Expected 48 more bytes of an item. Received the stream's end"),
    "an item_id again": ([opening(0, 1, 3, 4, 1), piece(DATA)], "an item_id that is new in the stream. Received 0."),
    "a refused item's item_id again": ([opening(5), opening(5)], "an item_id that is new in the stream. Received 5."),
}


@pytest.mark.parametrize(("messages", "words"), OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
@pytest.mark.parametrize("order", [1, 2], ids=["as sent", "as completed"])
def test_messages_out_of_order_end_the_stream(caller, messages, words, order):
    got, text, _ = refused(caller, [start(order=order), *item(0, X), *messages], "INVALID_REQUEST")
    assert words in text
    if order == 1:  # else the end may come before the answer that is still computed
        np.testing.assert_array_equal(answers(got)[0], expected(X))


def test_a_piece_before_any_item(caller):
    for data in (b"", b"\0"):
        _, text, _ = refused(caller, [start(), piece(data)], "INVALID_REQUEST")
        assert "Expected an item. Received a piece." in text


@pytest.mark.parametrize(
    "nonsense", [b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b\x7a\x01a", b"\x12\x01\x07\x7a\x01a"]
)
def test_bytes_that_are_no_message(caller, nonsense):
    """The last two hold a piece as the copy-free reading looks for it, but before it what protobuf refuses."""
    sent = [each.SerializeToString() for each in (start(), *item(0, X), OPENED)]
    for messages in ([nonsense], [sent[0], nonsense], [*sent, nonsense]):
        with pytest.raises(grpc.RpcError) as caught:
            list(caller.channel.stream_stream(PATH)(iter(messages), timeout=60))
        checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


NOT_FOUND, PRECONDITION = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
BAD_STARTS = {
    "nothing": ([], "INVALID_REQUEST"),
    "an item first": ([*item(0, X)], "INVALID_REQUEST"),
    "a piece first": ([piece(DATA)], "INVALID_REQUEST"),
    "an empty message": ([ConvolveStreamRequest()], "INVALID_REQUEST"),
    "no layers": ([ConvolveStreamRequest(start={})], "INVALID_REQUEST"),
    "a layer that is none": ([start(LayerReference())], "INVALID_REQUEST"),
    "a configuration": ([start(layer(conv2d(filters=-1)))], "INVALID_CONFIGURATION"),
    "weights": ([start(layer(weights=weights(np.ones((2, 1, 1, 1)))))], "INVALID_WEIGHTS"),
    "an output dtype": ([start(output_dtype=5)], "INVALID_TENSOR"),
    "a digest": ([start(LayerReference(digest=bytes(32)))], "LAYER_NOT_FOUND", PRECONDITION),
    "a name": ([start(LayerReference(name="of-nothing"))], "LAYER_NOT_FOUND", NOT_FOUND),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_STARTS.values(), ids=BAD_STARTS)
def test_a_start_that_is_refused_was_never_accepted(caller, bad):
    messages, *why = bad
    for more in ([], item(0, X), [*item(0, X)] * 50):
        got, _, call = refused(caller, [*messages, *more] if messages else [], *why)
        assert got == []
        assert "convserve-start" not in dict(call.initial_metadata())


# Callers that leave, or do nothing


def test_callers_that_leave_leave_nothing(limited, caller):
    """More of them than there are threads for requests: at once, within an item, with answers unread."""
    caller.check_service()
    threads = status(limited.process.pid, "Threads")
    large = image(0, 1, 300, 300, 1)
    messages = [start(), *item(0, large), *item(1, X), opening(2, *large.shape), piece(bytes(7))]
    for number in range(300):
        feed = Feed(*messages[: number % len(messages) + 1])
        call = caller.stub.ConvolveStream(iter(feed))
        call.initial_metadata()
        call.cancel()
        feed.end()
    caller.check_service()
    # Of the server's two pools each has up to 64 threads, which it keeps; a stream's own thread ends with it.
    eventually(lambda: status(limited.process.pid, "Threads") < threads + 2 * 64 + 50)


SILENT = {
    "before the start": [],
    "after the start": [start()],
    "after an item's head": [start(), OPENED],
    "within an item": [start(), OPENED, piece(DATA[:7])],
    "after an item": [start(), *item(0, X)],
}


@pytest.mark.parametrize("messages", SILENT.values(), ids=SILENT)
def test_a_deadline_ends_a_stream_on_which_nothing_comes(caller, messages):
    feed = Feed(*messages)
    call = caller.stub.ConvolveStream(iter(feed), timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    feed.end()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_deadline_ends_a_stream_that_is_computed(caller):
    wide = conv2d(filters=64, kernel_size=Size2D(height=29, width=29), padding=Padding(mode=2))
    started = start(layer(wide, weights=weights(np.ones((29, 29, 1, 64)))))
    feed = Feed(started, *itertools.chain.from_iterable(item(number, image(0, 1, 300, 300, 1)) for number in range(30)))
    call = caller.stub.ConvolveStream(iter(feed), timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    feed.end()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_who_reads_no_answers_is_not_listened_to_for_long(limited, caller):
    """The server holds a few items and what gRPC buffers, and serves others meanwhile."""
    pid, x = limited.process.pid, image(0, 1, 1024, 1024, 1)
    caller.check_service()
    forget_peak(pid)
    before = status(pid, "VmRSS")
    feed = Feed(start(), *itertools.chain.from_iterable(item(number, x) for number in range(100)))
    feed.end()
    call = caller.stub.ConvolveStream(iter(feed))

    def stalled():
        taken = feed.taken
        for _ in range(50):
            caller.check_service()
        return feed.taken == taken > 8

    eventually(stalled)
    assert feed.taken < 1 + 5 * 30  # 4 pieces of 1 MiB to an item
    assert status(pid, "VmHWM") - before < 300 * MIB  # of 400 that come in and 800 that go out
    assert len(answers(call)) == 100
    call.cancel()


def test_no_stream_holds_up_a_stop():
    with numpy_server("--drain-s", "1") as stopped, raw_caller(stopped.target) as caller:
        feeds = [Feed(*messages) for messages in SILENT.values()]
        feeds.append(
            Feed(start(), *itertools.chain.from_iterable(item(n, image(0, 1, 1024, 1024, 1)) for n in range(30)))
        )
        calls = [caller.stub.ConvolveStream(iter(feed)) for feed in feeds]
        for call in calls[1:]:
            assert ("convserve-start", "accepted") in [tuple(each) for each in call.initial_metadata()]
        caller.check_service()
        assert stopped.stop() == 0
        (said,) = stopped.log_lines
        assert said.endswith(f"--drain-s ran out: {len(calls)} calls in flight were cut off")
        for feed in feeds:
            feed.end()
