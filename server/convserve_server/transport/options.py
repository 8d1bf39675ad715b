"""What gRPC's own server is told: how large its messages are, and what it bounds before any code of ours is asked."""

from __future__ import annotations

import math
from typing import Any

from convserve.tensors.pieces import LARGE_FRAMES
from convserve_server.settings import LARGEST_MESSAGE_BYTES, Settings

_NO_COMPRESSION, _ANY_COMPRESSION = 0b1, 0b111  # gRPC's bits: identity, deflate, gzip
_MAX_METADATA_BYTES = 2**14
_FOR_EVER_MS = 2**31 - 1  # as gRPC reads it
_IDLE_CONNECTION_MS = 600_000  # after which a connection without calls is closed; callers connect again for the next


def server_options(settings: Settings, max_connections: int) -> list[tuple[str, Any]]:
    """Returns the options with which a `grpc.server` is made that refuses connections beyond so many."""
    # Integers: gRPC passes over floats without a word.
    times = (settings.max_connection_age_s, settings.drain_s)
    age_ms, grace_ms = (min(math.ceil(seconds * 1000), _FOR_EVER_MS) for seconds in times)
    renewal = [("grpc.max_connection_age_ms", age_ms), ("grpc.max_connection_age_grace_ms", grace_ms)]
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),  # what is sent was admitted
        *LARGE_FRAMES,
        # Otherwise a second server on the same port would silently get a share of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_MS),
        # And one more: clients of several servers watch the health of each for as long as they are connected.
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection + 1),
        ("grpc.compression_enabled_algorithms_bitset", _ANY_COMPRESSION if settings.compression else _NO_COMPRESSION),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # A peer that is gone without a word is noticed, and with it what its calls hold, or its idle connection.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # gRPC's own bounds, named here as SECURITY.md promises them: bytes of a call's metadata, and pings. Clients in
        # other languages have a ping every 10 seconds at the quickest, some early, also where they make no call: a
        # server that permits none then would answer the third with GOAWAY.
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 2),
        *(renewal if age_ms else ()),
    ]
