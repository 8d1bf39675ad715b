"""Who a call is from, which is what fairness between callers goes by."""

from __future__ import annotations

import grpc


def caller_of(context: grpc.ServicerContext) -> str:
    """Returns what the calls of one caller have in common: its host, or on this machine its connection."""
    peer = context.peer()
    return peer if is_local(peer) else peer.rpartition(":")[0]


def is_local(peer: str) -> bool:
    """Returns whether a peer, as gRPC names it, is on this machine."""
    return peer.startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))
