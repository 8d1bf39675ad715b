"""The wire form of the exceptions: a gRPC status with `google.rpc` details in the `grpc-status-details-bin` trailer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from convserve.errors import (
    ConvserveError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    LayerNotFoundError,
    NameConflictError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
    printable,
)
from convserve.v1 import convolution_service_pb2, error_pb2

DOMAIN = "convserve.v1"
"""ErrorInfo.domain of every error."""

# gRPC refuses trailers above 8 KiB by default. A status' text crosses the wire twice: percent-encoded, and in the
# details, which cross it in base64. These bounds, in bytes of the percent-encoded form, keep it all below 7.5 KiB.
_MAX_TEXT = 1500
_MAX_FIELD = 100
_MAX_DESCRIPTION = 1000
_MAX_OF_VIOLATIONS = 2400
_MAX_NAME = 800


def _family(parent: type[ConvserveError]) -> list[type[ConvserveError]]:
    return [parent, *(member for child in parent.__subclasses__() for member in _family(child))]


CLASS_OF_REASON = {
    error_pb2.ErrorReason.Name(kind.reason).removeprefix("ERROR_REASON_"): kind
    for kind in reversed(_family(ConvserveError))  # so that no class of a caller's own takes its parent's place
    if kind.reason and kind is not InvalidArgumentError
}
"""The class of each ErrorInfo.reason."""

# For what gRPC itself or a proxy answers, without an ErrorInfo of ours: the first class of the tree with the code.
_CLASS_OF_CODE = {kind.code_name: kind for kind in reversed(_family(ConvserveError))} | {
    "OUT_OF_RANGE": InvalidArgumentError,
    "NOT_FOUND": LayerNotFoundError,
    "FAILED_PRECONDITION": ConvserveError,
    "ABORTED": ConvserveError,
    "CANCELLED": UnavailableError,
}
# Texts of gRPC itself, which has no codes for these cases. Seen in grpcio 1.85.1.
# A call ended on its way: with INTERNAL, of asyncio where it was sending, and of a load balancer whose server ended
# (HAProxy); with UNKNOWN, of one that would have sent it to another server (Envoy).
_BROKEN_OFF = re.compile(
    r"Internal error from Core$|.*RST_STREAM with error code|exceeded request buffer limit while retrying upstream"
)
_ANSWER_TOO_LARGE = "CLIENT: Received message larger than max"
_MESSAGE_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")  # with RESOURCE_EXHAUSTED
_VERSION = re.compile(r"[0-9]{1,18}")
# With UNAVAILABLE: no connection was made, so that no server has received the call ...
_NOT_SENT = re.compile(r"failed to connect to all addresses|connections to all backends failing|DNS resolution failed")
# ... one was made and could not be encrypted, or the server ended it, as one with TLS does to a caller without.
_TLS_FAILED = re.compile(r"handshake failed|[Vv]erification [Cc]heck|CERTIFICATE|SSL_ERROR|TSI_")
_HUNG_UP = re.compile(r"Socket closed|Connection reset")
_IP_IN_URI = re.compile("%5B([0-9A-Fa-f:.]+)%5D")  # gRPC's form of [::1]

_NOBODY_TEXT = "Expected a server that answers. Received none: is `convserve serve` running there?"
_HUNG_UP_TEXT = (
    "Expected a server that answers. Received a connection that it ended: has it stopped, or does it ask for TLS, or "
    "for a certificate of yours (tls=, --tls)?"
)
_ENDED_TEXT = (
    "Expected an answer. Received the call's end: its tensors came or went too slowly while others waited for memory, "
    "or not at all for long, or its client was closed."
)
_MESSAGE_TOO_LARGE_TEXT = (
    "Expected at most {1} bytes in one message, the server's --max-message-bytes. Received a message of {0}: put the "
    "layers, and call what `put` returns, or ask the operator to raise it."
)
# By what gRPC says, the most certain first.
_TLS_FAILED_TEXTS = {
    "Hostname": (
        "Expected a TLS connection to a server whose certificate has this name. Received the certificate of another: "
        "give its name (TLS(server_name=...), --tls-server-name), or call the server by it."
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "Expected a TLS connection to a server whose certificate is valid and signed by a CA that is trusted here. "
        "Received another certificate: give its CA (TLS(ca=...), --tls-ca, or SSL_CERT_FILE of the environment), or "
        "renew it if it has expired."
    ),
    "": (
        "Expected a TLS connection to a server with a certificate for this name, signed by the CA in tls= (--tls-ca). "
        "Received none: does the server have TLS, and does it ask for a certificate of yours?"
    ),
}


def to_status(error: ConvserveError) -> grpc.Status:
    """Returns an error as a status with details, for `ServicerContext.abort_with_status`."""
    return rpc_status.to_status(_status_message(error))


def to_item_error(error: ConvserveError) -> convolution_service_pb2.StreamItemError:
    """Returns an error as the answer to one item of a stream."""
    status = _status_message(error)
    return convolution_service_pb2.StreamItemError(code=status.code, message=status.message, details=status.details)


def from_item_error(message: convolution_service_pb2.StreamItemError) -> ConvserveError:
    """Returns the exception that the server raised over one item of a stream."""
    code = next((code for code in grpc.StatusCode if code.value[0] == message.code), grpc.StatusCode.UNKNOWN)
    return _from_status(code, message.message, message.details)


def _status_message(error: ConvserveError) -> status_pb2.Status:
    status = status_pb2.Status(code=error.code.value[0], message=_cut(str(error), _MAX_TEXT))
    details = _beside_info(error)
    if error.reason:  # which a deadline has not: its code says all
        reason = error_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        details.insert(0, details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=_metadata(error)))
    for message in details:
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)
    return status


def from_rpc_error(failure: grpc.RpcError | ConvserveError) -> ConvserveError:
    """Returns the exception that the server raised, or the one that fits gRPC's own status; one of ours as it is."""
    if isinstance(failure, ConvserveError):
        return failure
    code, text = failure.code(), failure.details() or "no details"
    try:
        status = rpc_status.from_call(failure)  # type: ignore[arg-type]
        packed = status.details if status is not None else ()
    except (ValueError, DecodeError):  # a trailer that is not ours, or contradicts the status
        packed = ()
    # Its frames hold the call: an asyncio channel that was closed stays connected as long as one of its calls exists.
    failure.__traceback__ = None
    return _from_status(code, text, packed)


def tells_of_tls(error: ConvserveError) -> bool:
    """Returns whether an error says that no connection was made to a server that is there, which may be for its TLS."""
    known = [*_TLS_FAILED_TEXTS.values(), *([] if getattr(error, "may_be_done", False) else [_HUNG_UP_TEXT])]
    return isinstance(error, UnavailableError) and any(map(str(error).startswith, known))


def _from_status(code: grpc.StatusCode, text: str, packed: Iterable[any_pb2.Any]) -> ConvserveError:
    details, text = _Details(packed), _IP_IN_URI.sub(r"[\1]", printable(text))
    if details.info.domain == DOMAIN and details.info.reason in CLASS_OF_REASON:
        return _rebuilt(CLASS_OF_REASON[details.info.reason], code, text, details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _ANSWER_TOO_LARGE in text:
        return InternalError(f"Expected an answer as the contract has it. Received another: {text}.")
    sizes = _MESSAGE_TOO_LARGE.search(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and sizes:
        return TooLargeError(FieldViolation("layers", _MESSAGE_TOO_LARGE_TEXT.format(*sizes.groups())))
    may_be_done = not _NOT_SENT.search(text)
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and _BROKEN_OFF.match(text):
        code = grpc.StatusCode.UNAVAILABLE
        text = f"Expected an answer to the whole request. The call ended in the middle of it. ({text})"
    elif code is grpc.StatusCode.UNAVAILABLE and _TLS_FAILED.search(text):
        why = next(why for sign, why in _TLS_FAILED_TEXTS.items() if sign in text)
        text = f"{why} ({text})"
    elif code is grpc.StatusCode.UNAVAILABLE:
        why = _HUNG_UP_TEXT if _HUNG_UP.search(text) else _NOBODY_TEXT
        text = f"{why} ({text})"
    elif code is grpc.StatusCode.CANCELLED:
        text = f"{_ENDED_TEXT} ({text})"
    error = _rebuilt(_CLASS_OF_CODE.get(code.name, ConvserveError), code, text, details)
    error.code_name = code.name
    if isinstance(error, UnavailableError):
        error.may_be_done = may_be_done
    return error


class _Details:
    """The details of a status, unpacked; a message that is not there is empty."""

    def __init__(self, packed: Iterable[any_pb2.Any]) -> None:
        self.info = details_pb2.ErrorInfo()
        self.bad_request = details_pb2.BadRequest()
        self.retry = details_pb2.RetryInfo()
        self.resource = details_pb2.ResourceInfo()
        for detail in packed:
            for message in (self.info, self.bad_request, self.retry, self.resource):
                with suppress(DecodeError):  # a detail that is not what it says
                    detail.Unpack(message)  # does nothing for another type


def _metadata(error: ConvserveError) -> dict[str, str]:
    if isinstance(error, InternalError):
        return {"error_id": error.error_id}
    if isinstance(error, NameConflictError):
        name, found = _cut(error.name, _MAX_NAME), _cut(error.found, _MAX_NAME)
        return {"name": name, "found": found, "version": str(error.version)}
    return {}


def _beside_info(error: ConvserveError) -> list[Message]:
    if isinstance(error, InvalidArgumentError):
        listed = details_pb2.BadRequest()
        for violation in error.violations:
            listed.field_violations.add(
                field=_cut(violation.field, _MAX_FIELD), description=_cut(violation.description, _MAX_DESCRIPTION)
            )
            if listed.ByteSize() > _MAX_OF_VIOLATIONS:
                del listed.field_violations[-1]
                break
        return [listed]
    if isinstance(error, LayerNotFoundError):
        name = _cut(error.layer, _MAX_NAME)
        return [details_pb2.ResourceInfo(resource_type="convserve.v1.Layer", resource_name=name)]
    if isinstance(error, OverloadedError):
        retry = details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        return [retry]
    return []


def _rebuilt(kind: type[ConvserveError], code: grpc.StatusCode, text: str, details: _Details) -> ConvserveError:
    if issubclass(kind, InvalidArgumentError):
        violations = [
            FieldViolation(printable(wrong.field), printable(wrong.description))
            for wrong in details.bad_request.field_violations
        ]
        return kind(*(violations or [FieldViolation("request", text)]))
    if issubclass(kind, LayerNotFoundError):
        return kind(text, layer=printable(details.resource.resource_name), by_name=code is grpc.StatusCode.NOT_FOUND)
    if issubclass(kind, OverloadedError):
        return kind(text, retry_after_s=details.retry.retry_delay.ToNanoseconds() / 1e9)
    metadata = {key: printable(value) for key, value in details.info.metadata.items()}
    if issubclass(kind, InternalError):
        return kind(text, error_id=metadata.get("error_id", ""))
    if issubclass(kind, NameConflictError):
        number = metadata.get("version", "")
        version = int(number) if _VERSION.fullmatch(number) else 0
        return kind(text, name=metadata.get("name", ""), found=metadata.get("found", ""), version=version)
    return kind(text)


def _cut(text: str, most: int) -> str:
    """Returns a text as UTF-8 can carry it, shortened if percent-encoding makes it longer than `most` bytes."""
    text = text.encode(errors="replace").decode()
    length = 0
    for position, character in enumerate(text):
        length += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if length > most:
            return f"{text[:position]}... (cut)"
    return text
