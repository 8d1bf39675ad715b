"""What is used of gRPC though it does not promise it. tests/unit/server/transport/test_grpc_private.py holds it."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_channelz.v1 import _servicer, channelz, channelz_pb2

# gRPC rounds a timeout up by less than this part of it when it sends it, so by our clock some of it may be left when
# its caller's has passed; and a request may have taken longer to come here than the message that it is cancelled.
_ROUNDING, _TRANSIT_S = 0.01, 0.02


def is_non_blocking(handler: Any) -> bool:
    """Returns whether gRPC gives a method a function to answer with and keeps no thread for it: health's Watch."""
    return bool(getattr(handler.unary_stream, "experimental_non_blocking", False))


def add_channelz(server: grpc.Server) -> None:
    """Adds channelz, which passes over what it does not know of a channel."""
    _read_newer_channelz()
    channelz.add_channelz_servicer(server)


def servers() -> list[channelz_pb2.Server]:
    """Returns what gRPC has counted of the servers in this process, whether channelz is added to them or not."""
    _read_newer_channelz()
    return list(channelz.ChannelzServicer().GetServers(channelz_pb2.GetServersRequest(), None).server)


def _read_newer_channelz() -> None:
    # It reads what gRPC writes as JSON, and by itself refuses all of it for one field that is newer than its messages.
    parse = partial(json_format.Parse, ignore_unknown_fields=True)
    _servicer.json_format = SimpleNamespace(Parse=parse, ParseError=json_format.ParseError)


def code_at_end(context: grpc.ServicerContext, *, answered: bool, arrived_ns: int) -> str:
    """Returns the name of the code that a call, which came at a time in nanoseconds since 1970, ended with.

    That is the one that the method set, or OK for a whole answer within the deadline. gRPC does not say why a call
    ended without an answer. DEADLINE_EXCEEDED means that no more of its timeout was left than rounding and transit
    explain, CANCELLED that its caller, or its connection, ended it before.
    """
    code = context.code()  # type: ignore[attr-defined] # types-grpcio does not know it
    if code is not None and code is not grpc.StatusCode.OK:
        return str(code.name)
    remaining_s = context.time_remaining()
    if answered and remaining_s:
        return grpc.StatusCode.OK.name
    timeout_s = time.time() - arrived_ns / 1e9 + remaining_s
    is_due = remaining_s <= _ROUNDING * timeout_s + _TRANSIT_S
    return (grpc.StatusCode.DEADLINE_EXCEEDED if is_due else grpc.StatusCode.CANCELLED).name
