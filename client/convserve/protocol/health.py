"""The standard health service (grpc.health.v1), read without its stubs, which the base install does not have."""

from __future__ import annotations

from typing import Literal, cast, get_args

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value

from convserve.errors import InternalError, UnavailableError

Status = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
"""What a server says of itself. With "SERVING" it is ready for calls."""

METHOD = "/grpc.health.v1.Health/Check"
WHOLE_SERVER = b""
"""The request that names no service, and so asks for all of the server: an empty message."""


def status(response: bytes) -> Status:
    """Returns the status in a serialized grpc.health.v1.HealthCheckResponse; raises InternalError for anything else.

    That message is one enum under field 1, so on the wire it is what google.protobuf.Int32Value is.
    """
    try:
        return cast(Status, dict(enumerate(get_args(Status)))[Int32Value.FromString(response).value])
    except (DecodeError, KeyError):  # a status of -1 too
        raise InternalError("Expected the answer of a health service. Received another.") from None


def check_serving(response: bytes) -> None:
    """Raises UnavailableError for a status that is not "SERVING"."""
    if (found := status(response)) != "SERVING":
        raise UnavailableError(f"Expected a server that serves. Received {found}: it is starting or stopping.")
