"""Who a call is from, which is what fairness between callers goes by."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from convserve_server.caller import Caller


def caller_of(context: grpc.ServicerContext) -> str:
    """Returns what the calls of one caller have in common: its host, or on this machine its connection."""
    peer = context.peer()
    return peer if is_local(peer) else peer.rpartition(":")[0]


def calling(context: grpc.ServicerContext) -> Caller:
    """Returns a call's caller, as the request path sees it."""

    def when_gone(call: Callable[[], None]) -> bool:
        return bool(context.add_callback(call))

    return Caller(caller_of(context), context.is_active, context.time_remaining, when_gone)


def is_local(peer: str) -> bool:
    """Returns whether a peer, as gRPC names it, is on this machine."""
    return peer.startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))
