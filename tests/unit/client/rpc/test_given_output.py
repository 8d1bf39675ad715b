"""A caller's own array for the output: what is refused before anything is sent, and what is written to it when."""

from __future__ import annotations

import asyncio
import math
import resource
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convserve import Conv2D, InternalError, InvalidTensorError, Layer
from convserve._async import io
from convserve._rpc import streaming
from convserve._rpc.requests import convolve_request
from convserve.tensors import framing, pieces
from convserve.tensors.codec import head_of
from convserve.v1.convolution_service_pb2 import ConvolveResponse, ConvolveStreamResponse, LayerOutcome

SHAPE = (2, 3, 4, 2)
DOUBLE = Layer(Conv2D(2, 1, use_bias=False, data_format="channels_last"), np.full((1, 1, 1, 2), 2.0))
X = np.arange(24, dtype="f4").reshape(2, 3, 4, 1)
EXPECTED = np.repeat(2 * X, 2, axis=-1)
MEMORY = np.zeros(400, "f4")


class OfASubclass(np.ndarray):
    """An array that is not just one."""


class Lent:
    """Another library's tensor, which numpy could look at."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return np.zeros(SHAPE, "f4")


def locked() -> np.ndarray:
    array = np.zeros(SHAPE, "f4")
    array.flags.writeable = False
    return array


REFUSED: dict[str, tuple[Any, str]] = {
    "lists": (np.zeros(SHAPE, "f4").tolist(), r"a numpy array\. Received list"),
    "another library's": (Lent(), r"a numpy array\. Received Lent\. .*numpy\.from_dlpack"),
    "a number": (np.float32(0), r"a numpy array\. Received float32"),
    "a shape": (np.zeros((2, 4, 3, 2), "f4"), r"the output's shape \(2, 3, 4, 2\)\. Received \(2, 4, 3, 2\)"),
    "a shape that would broadcast": (np.zeros((2, 3, 4, 1), "f4"), "the output's shape"),
    "another number of axes": (np.zeros((1, *SHAPE), "f4"), "the output's shape"),
    "nothing": (np.zeros((0, 3, 4, 2), "f4"), "the output's shape"),
    "a wider dtype": (np.zeros(SHAPE, "f8"), r"dtype float32\. Received float64\. .*output_dtype="),
    "an integer": (np.zeros(SHAPE, "i4"), r"dtype float32\. Received int32"),
    "bfloat16": (np.zeros(SHAPE, ml_dtypes.bfloat16), r"dtype float32\. Received bfloat16"),
    "objects": (np.zeros(SHAPE, "O"), r"dtype float32\. Received object"),
    "another byte order": (np.zeros(SHAPE, ">f4"), r"dtype float32\. Received >f4"),
    "every other column": (np.zeros((2, 3, 8, 2), "f4")[:, :, ::2], r"C-contiguous array\. Received strides"),
    "Fortran's order": (np.zeros(SHAPE, "f4", "F"), "C-contiguous"),
    "one sample twice": (np.broadcast_to(np.zeros(SHAPE[1:], "f4"), SHAPE), "C-contiguous"),
    "read-only": (locked(), r"an array that may be written to\. Received a read-only one"),
    "bytes": (np.frombuffer(bytes(192), "f4").reshape(SHAPE), "an array that may be written to"),
    "masked": (np.ma.masked_equal(np.zeros(SHAPE, "f4"), 0), "an array without masked elements"),
}


@pytest.mark.parametrize(("out", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_take_the_output(out: Any, text: str) -> None:
    with pytest.raises(InvalidTensorError, match=rf"^out: Expected .*{text}") as caught:
        convolve_request(DOUBLE, X, None, out=out)
    assert [each.field for each in caught.value.violations] == ["out"]


def part(begin: int, *shape: int) -> np.ndarray:
    """Returns a view of the memory of which elements 29 to 77 are to take the output."""
    return MEMORY[begin : begin + math.prod(shape)].reshape(shape)


OVERLAPS = {
    "the input itself": (Conv2D(2, 1), part(29, *SHAPE)),
    "the input's end": (DOUBLE, part(6, *X.shape)),
    "its first element": (DOUBLE, part(76, *X.shape)),
    "the kernel": (Layer(DOUBLE.config, part(30, 1, 1, 1, 2)), X),
    "the bias": (Layer(DOUBLE.config.replace(use_bias=True), DOUBLE.kernel, part(76, 2)), X),
    "a later layer's kernel": ([DOUBLE, Layer(DOUBLE.config, part(50, 1, 1, 2, 2))], X),
}


@pytest.mark.parametrize(("layers", "x"), OVERLAPS.values(), ids=OVERLAPS)
def test_memory_that_is_sent_from(layers: Any, x: np.ndarray) -> None:
    with pytest.raises(InvalidTensorError, match=r"^out: Expected memory apart from the input's and the weights'"):
        convolve_request(layers, x, None, out=part(29, *SHAPE))


def test_memory_beside_it_and_between_what_is_copied_before_it_is_sent() -> None:
    frames = np.zeros((5, 24), "f4")
    out = frames[1:3].reshape(SHAPE)
    for x in (frames[:1].reshape(1, 3, 4, 2), frames[3:].reshape(2, 3, 4, 2), frames[::3].reshape(2, 3, 4, 2)):
        layer = Layer(Conv2D(2, 1, data_format="channels_last"))
        given = out if len(x) == 2 else out[:1]
        assert convolve_request(layer, x, None, out=given).out is given


def answer(x: np.ndarray, number: int = 0) -> list[bytes]:
    """Returns the messages that answer an item in pieces of 20 bytes."""
    output = np.repeat(2 * x, 2, axis=-1)
    result = ConvolveResponse(output=head_of(output), layers=[LayerOutcome()], batch_size=len(x))
    head = ConvolveStreamResponse(item_id=number).SerializeToString()
    begin = ConvolveStreamResponse(item_id=number, result=result).SerializeToString()
    return [begin, *(framing.write_piece(head, each) for each in pieces.cut(output, 20))]


def test_pieces_are_written_into_it_and_an_attempt_after_one_that_broke_off_overwrites_them() -> None:
    out = np.full(SHAPE, np.nan, "f4").view(OfASubclass)
    request = convolve_request(DOUBLE, X, None, out=out)
    broken = streaming.Stream(request)
    begin, *rest = answer(X + 1)
    broken.take(begin)
    assert np.isnan(out).all()
    broken.take(rest[0])
    assert not np.isnan(out).all()
    again = streaming.Stream(request)
    for each in answer(X):
        again.take(each)
    assert again.result().output is out
    np.testing.assert_array_equal(out, EXPECTED)


def test_a_loop_with_the_same_array_touches_no_fresh_page() -> None:
    layer = Layer(Conv2D(64, 1, use_bias=False, data_format="channels_last"), np.ones((1, 1, 1, 64), "f4"))
    x, piece = np.ones((1, 512, 512, 1), "f4"), framing.write_piece(b"", memoryview(bytes(2**20)))
    out = np.ones((1, 512, 512, 64), "f4")  # 64 MiB, which no allocator keeps for the next one
    result = ConvolveResponse(output=head_of(out), layers=[LayerOutcome()])
    messages = [ConvolveStreamResponse(result=result).SerializeToString(), *[piece] * 64]

    def faults(out: np.ndarray | None) -> int:
        """Returns how many pages some answers are the first to touch."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(2):
            stream = streaming.Stream(convolve_request(layer, x, None, out=out))
            for each in messages:
                stream.take(each)
            assert not stream.result().output.any()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults(out)
    assert faults(out) < faults(None) / 8


LIES = {
    "another shape": ConvolveResponse(layers=[LayerOutcome()], output=head_of(np.zeros((2, 4, 3, 2), "f4"))),
    "another dtype": ConvolveResponse(layers=[LayerOutcome()], output=head_of(np.zeros(SHAPE, "f8"))),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_of_another_form_leaves_it_as_it_is(lie: ConvolveResponse) -> None:
    out = np.full(SHAPE, 7, "f4")
    request = convolve_request(DOUBLE, X, None, out=out)
    with pytest.raises(InternalError, match="an output of shape"):
        streaming.Stream(request).take(ConvolveStreamResponse(result=lie).SerializeToString())
    dtype = "f8" if lie.output.dtype == 4 else "f4"
    output = np.ones(tuple(lie.output.shape), dtype)
    with pytest.raises(InternalError, match="an output of shape"):
        request.result(framing.write(ConvolveResponse(layers=[LayerOutcome()]), output))
    assert (out == 7).all()


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_caller_waits_for_the_copy_into_it(times: int) -> None:
    begun, released = threading.Event(), threading.Event()
    written = []

    def copy(number: int) -> None:
        begun.set()
        released.wait()
        written.append(number)

    async def call() -> None:
        task = asyncio.create_task(io.completed(copy, 1))
        await asyncio.to_thread(begun.wait)
        try:
            for _ in range(times):
                task.cancel()
                await asyncio.wait([task], timeout=0.01)
                assert not task.done()
        finally:
            released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert written == [1]

    asyncio.run(call())
