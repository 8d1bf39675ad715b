"""How both ends move large tensors: in pieces, and in large HTTP/2 frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convserve.tensors.codec import Array

ACCEPTED = ("convserve-start", "accepted")
"""The initial metadata with which a server accepts a stream's start."""

PIECE_BYTES = 2**21

LARGE_FRAMES = [
    ("grpc.http2.max_frame_size", 2**24 - 1),
    ("grpc.http2.lookahead_bytes", 2**24),
    ("grpc.http2.write_buffer_size", 2**22),
]
"""gRPC options with which both ends take larger steps than by default."""


def cut(array: Array, piece_bytes: int) -> Iterator[memoryview]:
    """Yields an array's elements, C-contiguous, in pieces."""
    elements = array.reshape(-1).view(np.uint8).data
    for begin in range(0, len(elements), piece_bytes):
        yield elements[begin : begin + piece_bytes]
