"""gRPC options that both ends set."""

from __future__ import annotations

LARGE_FRAMES = [
    ("grpc.http2.max_frame_size", 2**24 - 1),
    ("grpc.http2.lookahead_bytes", 2**24),
    ("grpc.http2.write_buffer_size", 2**22),
]
"""Options with which both ends move large tensors in larger steps than gRPC's default."""
