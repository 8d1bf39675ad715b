"""A forward pass as a stream, without a server: how a batch is divided, and what an answer must not be."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve import Client, Conv2D, InternalError, Layer, OverloadedError, RetryRule, TooLargeError
from convserve._rpc import requests, streaming
from convserve._rpc.requests import ConvolveRequest, convolve_request
from convserve._sync import io
from convserve.errors import FieldViolation
from convserve.protocol.results import Result
from convserve.protocol.status import to_item_error
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors import framing, pieces
from convserve.tensors.codec import head_of
from convserve.v1.convolution_service_pb2 import (
    ConvolveResponse,
    ConvolveStreamRequest,
    ConvolveStreamResponse,
    LayerOutcome,
)

REFUSAL = TooLargeError(FieldViolation("input", "Expected less. Received more."))
DOUBLE = Layer(Conv2D(2, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 2), 2.0))


def request(samples: int = 5, layer: Any = DOUBLE) -> ConvolveRequest:
    return convolve_request(layer, np.arange(samples * 12, dtype="f4").reshape(samples, 3, 4, 1), None)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> streaming.Stream:
    """Five samples in three items of up to 200 bytes of output, in pieces of 64."""
    monkeypatch.setattr(streaming, "_ITEM_BYTES", 200)
    monkeypatch.setattr(streaming, "PIECE_BYTES", 64)
    return streaming.Stream(request())


def answer(number: int, x: np.ndarray, piece_bytes: int = 70) -> list[bytes]:
    """Returns the messages with which a server answers an item."""
    output = np.repeat(2 * x, 2, axis=-1)
    layers = [LayerOutcome()]
    result = ConvolveResponse(output=head_of(output), layers=layers, batch_size=len(x), device="cpu:0")
    head = ConvolveStreamResponse(item_id=number).SerializeToString()
    return [
        ConvolveStreamResponse(item_id=number, result=result).SerializeToString(),
        *(framing.write_piece(head, each) for each in pieces.cut(output, piece_bytes)),
    ]


ITEMS = [slice(0, 2), slice(2, 4), slice(4, 5)]
ANSWERS = [answer(number, request().input[rows]) for number, rows in enumerate(ITEMS)]


def received(stream: streaming.Stream, messages: list[bytes]) -> Result:
    """Returns what messages come to."""
    for each in messages:
        stream.take(each)
    return stream.result()


def test_what_is_sent_is_the_batch_in_order(stream: streaming.Stream) -> None:
    assert stream.items == ITEMS
    assert ConvolveStreamRequest.FromString(stream.start).start.piece_bytes == 64
    shapes, data = [], b""
    for each in stream.pieces():
        message = ConvolveStreamRequest.FromString(each)
        if message.WhichOneof("message") == "item":
            assert message.item.item_id == len(shapes)
            shapes.append(tuple(message.item.shape))
        else:
            assert 0 < len(message.piece) <= 64
            data += message.piece
    assert shapes == [(2, 3, 4, 1), (2, 3, 4, 1), (1, 3, 4, 1)]
    assert data == request().input.tobytes()


@given(samples=st.integers(1, 40), item_bytes=st.integers(1, 5000))
def test_items_are_as_large_as_they_may_be(samples: int, item_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streaming, "_ITEM_BYTES", item_bytes)
        items = streaming.Stream(request(samples)).items
    together = max(1, item_bytes // 96)
    assert [row for rows in items for row in range(samples)[rows]] == list(range(samples))
    assert len(items) == math.ceil(samples / together)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_batch_with_a_penalty_of_its_own_is_not_divided(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    monkeypatch.setattr(streaming, "_ITEM_BYTES", 1)
    plain, active = Conv2D(1, 1), Conv2D(1, 1, activity_regularizer="l2")
    assert streaming.Stream(request(layer=[plain, active][-layers:])).items == [slice(0, 5)]
    assert len(streaming.Stream(request(layer=plain)).items) == 5


def test_a_retry_begins_with_the_samples_that_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server takes one of five samples, and then has no room for them for a moment."""
    answers, sent = [REFUSAL, REFUSAL, OverloadedError("Expected room. Received none."), None], []

    def call(_: Any, made: Any, __: Any) -> Any:
        sent.append(len(made.items) if isinstance(made, streaming.Stream) else 0)
        if (error := answers.pop(0)) is not None:
            raise error
        return mock.Mock()

    monkeypatch.setattr(io, "answer", call)
    monkeypatch.setattr(io, "stream", call)
    with Client("localhost:1", shared_memory=False, retry=RetryRule(initial_s=0)) as client:
        client.convolve(DOUBLE, request().input)
    assert sent == [0, 3, 5, 5]
    assert REFUSAL.__traceback__ is None  # whose frames would hold the input until a collection of garbage


def test_what_a_stream_divides_by_itself_may_go_by_another_way_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server is short of memory to share for a moment."""
    monkeypatch.setattr(streaming, "_ITEM_BYTES", 200)
    made = request()
    assert len(streaming.Stream(made).items) == 3
    assert not made.is_divided
    assert made.reduce(REFUSAL)
    assert made.is_divided
    assert len(streaming.Stream(made).items) == 5  # fewer in each than the stream had


def test_a_stored_layer_tries_the_whole_batch_again_after_some_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server may have a higher limit by then, or be another one."""
    monkeypatch.setattr(requests, "_REMEMBERED_CALLS", 3)
    layer = StoredLayerBase(DOUBLE.digest, DOUBLE.config, DOUBLE.kernel_shape)
    x = request().input
    refused = convolve_request(layer, x, None)
    assert refused.reduce(REFUSAL)
    refused.remember_division()
    begun = []
    for _ in range(5):
        made = convolve_request(layer, x, None)
        begun.append(made.most_samples)
        made.remember_division()
    assert begun == [2, 2, 2, 5, 5]


def too_large(unit: str, limit: int) -> TooLargeError:
    return TooLargeError(FieldViolation("input", f"Expected at most {limit} {unit}. Received more."))


@pytest.mark.parametrize("samples", [1, 5])
def test_a_message_that_is_too_large_goes_in_pieces_once(samples: int) -> None:
    made, refusal = request(samples), too_large("bytes in one message", 300)
    assert made.reduce(refusal)
    assert made.is_large
    assert not made.is_divided  # for a piece is small enough whatever it is of
    assert not made.reduce(refusal)
    assert not request(samples).reduce(too_large("bytes in one message", 30))  # with less room than the layers take


@pytest.mark.parametrize(
    ("unit", "size"),
    [("bytes of memory in one call", lambda plan: plan.memory_bytes),
     ("bytes of memory beside weights in one call", lambda plan: plan.memory_bytes - plan.weight_bytes),
     ("FLOPs in one call", lambda plan: plan.flops)],
)  # fmt: skip
@pytest.mark.parametrize("fitting", [10, 1])
def test_what_a_limit_leaves_is_known_without_sending_more(unit: str, size: Any, fitting: int) -> None:
    made = request(40)
    assert made.reduce(too_large(unit, size(request(fitting).plan)))
    assert made.most_samples == fitting
    one = request(40)
    assert one.reduce(too_large(unit, 1))
    assert one.most_samples == 1  # of which the server says how much it is
    streaming.Stream(one)
    assert not one.reduce(too_large(unit, 1))


@pytest.mark.parametrize("field", ["layers", "output_bytes"])
def test_what_no_division_makes_smaller_is_not_divided(field: str) -> None:
    made = request()
    assert not made.reduce(TooLargeError(FieldViolation(field, "Expected less. Received more.")))
    assert not made.is_divided


def test_what_comes_back_is_put_together(stream: streaming.Stream) -> None:
    result = received(stream, [each for messages in ANSWERS for each in messages])
    np.testing.assert_array_equal(result.output, np.repeat(2 * request().input, 2, axis=-1))
    assert result.batch_size == 2
    assert result.output.ctypes.data % 64 == 0  # so that TensorFlow takes it where it is


def test_pieces_may_be_of_any_length_and_written_in_any_way(stream: streaming.Stream) -> None:
    for number, rows in enumerate(ITEMS):
        head, *pieces = answer(number, request().input[rows], 7)
        stream.take(head)
        for each in pieces:
            message = ConvolveStreamResponse.FromString(each)
            stream.take(b"\x7a" + bytes([len(message.piece)]) + message.piece + b"\x08" + bytes([number]))
        stream.take(ConvolveStreamResponse(item_id=number, piece=b"").SerializeToString())
    np.testing.assert_array_equal(stream.result().output, np.repeat(2 * request().input, 2, axis=-1))


def test_no_memory_is_taken_before_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that no server takes may be one for which this process has no memory either."""
    huge = convolve_request(Conv2D(2**31 - 1, 1), np.zeros((1, 2**10, 2**10, 1), "f4"), None)
    with pytest.raises(TooLargeError):
        streaming.Stream(huge).take(ConvolveStreamResponse(error=to_item_error(REFUSAL)).SerializeToString())


FIRST, SECOND, THIRD = ANSWERS
OTHER_SHAPE = ConvolveResponse(layers=[LayerOutcome()], output=head_of(np.zeros((2, 3, 4, 1), "f4")))
OTHER_TYPE = ConvolveResponse(layers=[LayerOutcome()], output=head_of(np.zeros((2, 3, 4, 2), "f8")))
WRONG = {
    "nothing": [],
    "too little": [*FIRST, *SECOND, *THIRD[:-1]],
    "an item less": [*FIRST, *SECOND],
    "a piece more": [*FIRST, *SECOND, *THIRD, THIRD[-1]],
    "a longer piece": [FIRST[0], framing.write_piece(b"", memoryview(bytes(193)))],
    "a piece before any item": [FIRST[1], *FIRST],
    "another item first": [*SECOND, *FIRST, *THIRD],
    "an item twice": [*FIRST, *FIRST],
    "an item more": [*FIRST, *SECOND, *THIRD, *answer(3, request().input[:1])],
    "a negative item": answer(-1, request().input[4:]),
    "the next one early": [*FIRST[:-1], *SECOND],
    "a piece of another item": [FIRST[0], SECOND[1]],
    "a piece of another item, written in another order": [FIRST[0], b"\x7a\x01a\x08\x01"],
    "another shape": [ConvolveStreamResponse(result=OTHER_SHAPE).SerializeToString()],
    "another type": [ConvolveStreamResponse(result=OTHER_TYPE).SerializeToString()],
    "nothing set": [b""],
    "no message": [b"\xff"],
    "no message before a piece": [FIRST[0], b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x7a\x01a"],
}


@pytest.mark.parametrize("messages", WRONG.values(), ids=WRONG)
def test_an_answer_that_is_none(stream: streaming.Stream, messages: list[bytes]) -> None:
    with pytest.raises(InternalError, match=r"^Expected an answer as the contract has it\. Received another: "):
        received(stream, messages)
