"""Exceptions to statuses, for every method in one place."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from convserve.errors import ConvserveError, InternalError, InvalidRequestError, OutOfMemoryError, UnimplementedError
from convserve.protocol.status import to_status
from convserve_server.auth.identity import anyone
from convserve_server.observability.call_record import CallRecord
from convserve_server.transport.message_bounds import MessageBound

log = logging.getLogger("convserve")


def parsed(parse: Callable[[bytes], Any], data: bytes | None, bound: MessageBound) -> Any:
    """Returns a request. Raises InvalidRequestError if there is none, or its bytes are no message, or TooLargeError."""
    if data is None:
        raise InvalidRequestError.for_field("request", "one message", "none")
    try:
        bound.check(data)
        return parse(data)
    except DecodeError as error:
        received = f"{len(data)} bytes that are none: {error}"
        raise InvalidRequestError.for_field("request", "a message of the contract", received) from None


def to_convserve_error(error: Exception, call: CallRecord) -> ConvserveError:
    """Returns the error that answers an exception of a call's method; one that is not ours is logged under an id."""
    method = call.method_label  # which is one line, whatever the caller named
    if isinstance(error, ConvserveError):
        log.debug("%s answered %s: %s", method, error.code.name, error)
        return error
    if isinstance(error, MemoryError):
        text = f"Expected memory on the server's machine. Received none: send less in one call. {error}"
        return OutOfMemoryError(text)
    if isinstance(error, NotImplementedError):
        return UnimplementedError(f"Expected a call that this server has. It has no {method}.")
    ids = {"error_id": secrets.token_hex(6), "request_id": call.request_id}
    log.error("%s failed, error id %s, request id %s", method, *ids.values(), exc_info=error, extra=ids)
    text = f"The server failed. Its log has the details under error id {ids['error_id']}."
    return InternalError(text, error_id=ids["error_id"])


def status_of(error: Exception, call: CallRecord, context: grpc.ServicerContext) -> grpc.Status:
    """Returns the status that answers what a method raised; raises it again if its caller is gone, which is why.

    Callers `abort` with it once they have forgotten the error: it and its traceback, in which the tensors are, would
    keep each other.
    """
    if call.identity is None:
        call.identity = anyone(context.peer(), frozenset())  # for the log
    if not isinstance(error, ConvserveError) and not context.is_active():
        raise error
    answer = to_convserve_error(error, call)
    call.refused(answer)
    return to_status(answer)


def abort(status: grpc.Status, context: grpc.ServicerContext) -> NoReturn:
    """Ends a call. Unlike `abort_with_status` it keeps the trailing metadata that is set."""
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *(status.trailing_metadata or ())))
    context.abort(status.code, status.details)
    raise AssertionError  # abort has raised
