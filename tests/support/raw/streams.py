"""ConvolveStream past the client: messages as the generated stubs write them, and what comes back of each item."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from convserve.v1.convolution_service_pb2 import ConvolveStreamRequest, ConvolveStreamResponse, StreamItem, StreamStart
from tests.support.raw.calls import layer, tensor, weights

KERNEL = np.float32([[1, -2]]).reshape(1, 1, 1, 2)


def start(*layers: Any, **changes: Any) -> ConvolveStreamRequest:
    """Returns the first message; of a layer of two filters if none is given."""
    config = layer(weights=weights(KERNEL))
    config.inline.conv2d.filters = 2
    return ConvolveStreamRequest(start=StreamStart(layers=layers or [config], **changes))


def opening(number: int, *shape: int, dtype: int = 1) -> ConvolveStreamRequest:
    """Returns the message that opens an item."""
    return ConvolveStreamRequest(item=StreamItem(item_id=number, dtype=dtype, shape=shape))


def piece(data: bytes) -> ConvolveStreamRequest:
    """Returns a piece's message."""
    return ConvolveStreamRequest(piece=data)


def item(number: int, x: np.ndarray, piece_bytes: int = 2**20) -> Iterator[ConvolveStreamRequest]:
    """Yields an item's messages."""
    yield opening(number, *x.shape)
    data = tensor(x).data
    for begin in range(0, len(data), piece_bytes):
        yield piece(data[begin : begin + piece_bytes])


def image(number: int, *shape: int) -> np.ndarray:
    """Returns whole numbers, other ones for each number."""
    return np.random.default_rng(number).integers(-99, 99, shape or (1, 3, 4, 1)).astype("f4")


def expected(x: np.ndarray) -> np.ndarray:
    """Returns what the layer of two filters makes of an input."""
    return x * KERNEL.reshape(2)


class Feed:
    """Messages that a test sends one by one."""

    def __init__(self, *messages: Any) -> None:
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.taken = 0
        self.send(*messages)

    def send(self, *messages: Any) -> None:
        """Sends some."""
        for each in messages:
            self._messages.put(each)

    def end(self) -> None:
        """Ends the stream."""
        self._messages.put(None)

    def __iter__(self) -> Iterator[Any]:
        """Yields them to gRPC, which asks in a thread of its own."""
        while (message := self._messages.get()) is not None:
            self.taken += 1
            yield message


def answers(responses: Iterable[ConvolveStreamResponse]) -> dict[int, Any]:
    """Returns each item's output or error, in the order of the answers, and asserts that they are well-formed."""
    found: dict[int, Any] = {}
    data: dict[int, bytearray] = {}
    for each in responses:
        kind = each.WhichOneof("message")
        if kind == "piece":
            data[each.item_id] += each.piece
            continue
        assert each.item_id not in found
        assert all(len(data[done]) == found[done].nbytes for done in data)  # pieces of two items are not mixed
        if kind == "error":
            found[each.item_id] = each.error
        else:
            output = each.result.output
            assert (kind, output.data, output.dtype) == ("result", b"", 1)
            assert each.result.device == "cpu:0"
            found[each.item_id], data[each.item_id] = np.empty(output.shape, "<f4"), bytearray()
    return {
        number: np.frombuffer(data[number], "<f4").reshape(what.shape) if number in data else what
        for number, what in found.items()
    }
