"""`convserve health`: is a server serving?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value

from convserve._rpc.channel import channel_target
from convserve._rpc.credentials import Access
from convserve.cli.command import Failure, new_command
from convserve.cli.options.connection import Connection, connection_options
from convserve.errors import DeadlineExceededError
from convserve.protocol.status import from_rpc_error

_METHOD = "/grpc.health.v1.Health/Check"
_STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


@new_command("health")
@connection_options(timeout=5.0)
def command(connection: Connection) -> None:
    target = channel_target(connection.target)
    with closing(Access(target, "", connection.encryption()).channel(target)) as channel:
        check: Callable[..., bytes] = channel.unary_unary(_METHOD)
        try:
            # The request names no service, which asks for the whole server's health: an empty message.
            status = status_number(check(b"", timeout=connection.timeout))
            found = _STATUSES.get(status, f"status {status}")
        except grpc.RpcError as failure:
            error = from_rpc_error(failure)
            late = isinstance(error, DeadlineExceededError)
            found = f"no answer within {connection.timeout:g} s" if late else " ".join(str(error).split())
        except DecodeError:
            found = "the answer is not that of a health service"
    if found != "SERVING":
        raise Failure(f"not serving: {connection.target}: {found}")
    print(found)


def status_number(response: bytes) -> int:
    """Returns the status in a serialized grpc.health.v1.HealthCheckResponse, or raises DecodeError.

    That message is one enum under field 1, so on the wire it is what google.protobuf.Int32Value is. Reading it so needs
    no grpcio-health-checking, which the base install does not have.
    """
    return Int32Value.FromString(response).value
