"""What can go wrong, as one tree of exceptions. The class that the server raises is the class that the client raises.

    ConvserveError
    ├── InvalidArgumentError (ValueError)     INVALID_ARGUMENT: mend the call; `violations` names the fields
    │   ├── InvalidRequestError                   the request is incomplete or contradicts itself
    │   ├── InvalidConfigurationError             a Conv2D parameter that Keras refuses too
    │   ├── InvalidTensorError                    a tensor contradicts itself, or the layer cannot take it
    │   ├── InvalidWeightsError                   weights are missing or don't fit
    │   └── TooLargeError                         more than this server ever takes in one call
    ├── LayerNotFoundError (LookupError)      FAILED_PRECONDITION (digest) or NOT_FOUND (name)
    ├── OverloadedError                       RESOURCE_EXHAUSTED: retry after `retry_after_s`
    ├── OutOfMemoryError                      RESOURCE_EXHAUSTED: send smaller batches
    ├── DeadlineExceededError (TimeoutError)  DEADLINE_EXCEEDED: raise the timeout
    ├── UnauthenticatedError                  UNAUTHENTICATED
    ├── PermissionDeniedError                 PERMISSION_DENIED
    ├── UnavailableError (ConnectionError)    UNAVAILABLE: nobody answered, or the server is stopping
    ├── UnimplementedError                    UNIMPLEMENTED: this server does not have the call
    ├── InternalError                         INTERNAL: a defect; the server's log has more under `error_id`
    └── MissingDependencyError (ImportError)  raised locally only: an optional package is not installed

The wire form is gRPC's own: a status, with `google.rpc` details in the `grpc-status-details-bin` trailer. Each class
knows its status code and its `ErrorReason` (proto/convserve/v1/error.proto), so the mapping is a table lookup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from convserve.v1 import error_pb2

DOMAIN = "convserve.v1"
"""ErrorInfo.domain of every error."""

# gRPC refuses trailers above 8 KiB by default. A status' text crosses the wire twice: percent-encoded, and in the
# details, which cross it in base64. These bounds, in bytes of the percent-encoded form, keep it all below 7.5 KiB.
_LONGEST_TEXT = 1500
_LONGEST_FIELD = 100
_LONGEST_DESCRIPTION = 1000
_MOST_OF_VIOLATIONS = 2400
_LONGEST_NAME = 800

_LONGEST_VALUE = 160  # characters of a value that a text shows


def shown(value: object) -> str:
    """Returns `repr(value)`, shortened so that a hostile or huge value cannot fill an error message."""
    length = len(value) if isinstance(value, str | bytes | list | tuple) else 0
    try:
        text = repr(value[:_LONGEST_VALUE] if length > _LONGEST_VALUE else value)  # type: ignore[index]
    except Exception:  # such as an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be shown"
    if max(length, len(text)) <= _LONGEST_VALUE:
        return text
    return f"{text[:_LONGEST_VALUE]}... ({max(length, len(text))} characters)"


def _cut(text: str, most: int) -> str:
    """Returns a text as UTF-8 can carry it, shortened if percent-encoding makes it longer than `most` bytes."""
    text = text.encode(errors="replace").decode()
    length = 0
    for position, character in enumerate(text):
        length += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if length > most:
            return f"{text[:position]}... (cut)"
    return text


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field.

    Attributes:
        field: The parameter by its Keras name, or "input", "kernel" or "bias".
        description: What was expected, what was received, what to do.
    """

    field: str
    description: str


class ConvserveError(Exception):
    """The root of everything that convserve raises on purpose."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: ClassVar[int] = error_pb2.ERROR_REASON_UNSPECIFIED

    def _details(self) -> list[Message]:
        """Returns the `google.rpc` messages that travel beside ErrorInfo."""
        return []

    def _metadata(self) -> dict[str, str]:
        """Returns ErrorInfo.metadata."""
        return {}

    @classmethod
    def _rebuilt(cls, text: str, details: _Details) -> ConvserveError:  # noqa: ARG003 (subclasses read it)
        """Makes the exception again from what crossed the wire."""
        return cls(text)

    def to_status(self) -> grpc.Status:
        """Returns the error as a status with details, for `ServicerContext.abort_with_status`."""
        status = status_pb2.Status(code=self.code.value[0], message=_cut(str(self), _LONGEST_TEXT))
        reason = error_pb2.ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")
        info = details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=self._metadata())
        for message in (info, *self._details()):
            packed = any_pb2.Any()
            packed.Pack(message)
            status.details.append(packed)
        return rpc_status.to_status(status)


class InvalidArgumentError(ConvserveError, ValueError):
    """The call is wrong and will stay wrong until it is changed.

    Attributes:
        violations: Every wrong field that was found, in the order of Keras' parameters.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = error_pb2.ERROR_REASON_INVALID_REQUEST

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = violations
        super().__init__("\n".join(f"{each.field}: {each.description}" for each in violations))

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make it again, so that it can be copied and sent between processes."""
        return type(self), self.violations, self.__dict__

    def under(self, prefix: str) -> InvalidArgumentError:
        """Returns the same error with `prefix` before every field."""
        return type(self)(*(FieldViolation(prefix + each.field, each.description) for each in self.violations))

    def _details(self) -> list[Message]:
        listed = details_pb2.BadRequest()
        for each in self.violations:
            listed.field_violations.add(
                field=_cut(each.field, _LONGEST_FIELD), description=_cut(each.description, _LONGEST_DESCRIPTION)
            )
            if listed.ByteSize() > _MOST_OF_VIOLATIONS:
                del listed.field_violations[-1]
                break
        return [listed]

    @classmethod
    def _rebuilt(cls, text: str, details: _Details) -> ConvserveError:
        violations = [FieldViolation(each.field, each.description) for each in details.bad_request.field_violations]
        return cls(*(violations or [FieldViolation("request", text)]))


@contextmanager
def naming_layer(index: int, count: int) -> Iterator[None]:
    """Puts "layers[index]." before the fields of what the block refuses, if there are several layers."""
    try:
        yield
    except InvalidArgumentError as error:
        raise (error.under(f"layers[{index}].") if count > 1 else error) from None


class InvalidRequestError(InvalidArgumentError):
    """The request is incomplete or contradicts itself."""


class InvalidConfigurationError(InvalidArgumentError):
    """A Conv2D parameter that `keras.layers.Conv2D` refuses too."""

    reason = error_pb2.ERROR_REASON_INVALID_CONFIGURATION


class InvalidTensorError(InvalidArgumentError):
    """A tensor contradicts itself, or is an input that the layer cannot take."""

    reason = error_pb2.ERROR_REASON_INVALID_TENSOR


class InvalidWeightsError(InvalidArgumentError):
    """Weights are missing, or don't fit the configuration or the input."""

    reason = error_pb2.ERROR_REASON_INVALID_WEIGHTS


class TooLargeError(InvalidArgumentError):
    """More than this server takes in one call, ever; the text gives the size, the limit and the setting."""

    reason = error_pb2.ERROR_REASON_TOO_LARGE


class LayerNotFoundError(ConvserveError, LookupError):
    """The server holds no layer with this digest or name.

    Attributes:
        layer: The digest in hexadecimal, or the name.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = error_pb2.ERROR_REASON_LAYER_NOT_FOUND

    def __init__(self, message: str, *, layer: str = "", by_name: bool = False) -> None:
        super().__init__(message)
        self.layer = layer
        if by_name:
            self.code = grpc.StatusCode.NOT_FOUND

    def _details(self) -> list[Message]:
        return [
            details_pb2.ResourceInfo(resource_type="convserve.v1.Layer", resource_name=_cut(self.layer, _LONGEST_NAME))
        ]

    @classmethod
    def _rebuilt(cls, text: str, details: _Details) -> ConvserveError:
        return cls(text, layer=details.resource.resource_name, by_name=details.code is grpc.StatusCode.NOT_FOUND)


class OverloadedError(ConvserveError):
    """The server is too busy now.

    Attributes:
        retry_after_s: Seconds after which a retry may succeed.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = error_pb2.ERROR_REASON_OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def _details(self) -> list[Message]:
        retry = details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(self.retry_after_s * 1e9))
        return [retry]

    @classmethod
    def _rebuilt(cls, text: str, details: _Details) -> ConvserveError:
        return cls(text, retry_after_s=details.retry.retry_delay.ToNanoseconds() / 1e9)


class OutOfMemoryError(ConvserveError):
    """The device's memory did not suffice; send smaller batches."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = error_pb2.ERROR_REASON_OUT_OF_MEMORY


class DeadlineExceededError(ConvserveError, TimeoutError):
    """The answer did not come within the call's timeout."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnauthenticatedError(ConvserveError):
    """The call has no credentials, or unknown ones."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = error_pb2.ERROR_REASON_UNAUTHENTICATED


class PermissionDeniedError(ConvserveError):
    """The credentials don't allow this call."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = error_pb2.ERROR_REASON_PERMISSION_DENIED


class UnavailableError(ConvserveError, ConnectionError):
    """Nobody answered, the connection broke, or the server is starting or stopping."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = error_pb2.ERROR_REASON_UNAVAILABLE


class UnimplementedError(ConvserveError):
    """This server does not have the call."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = error_pb2.ERROR_REASON_UNIMPLEMENTED


class InternalError(ConvserveError):
    """A defect of the server's.

    Attributes:
        error_id: Under this id the server's log has the details. Empty if the failure came from elsewhere.
    """

    code = grpc.StatusCode.INTERNAL
    reason = error_pb2.ERROR_REASON_INTERNAL

    def __init__(self, message: str, *, error_id: str = "") -> None:
        super().__init__(message)
        self.error_id = error_id

    def _metadata(self) -> dict[str, str]:
        return {"error_id": self.error_id}

    @classmethod
    def _rebuilt(cls, text: str, details: _Details) -> ConvserveError:
        return cls(text, error_id=details.info.metadata.get("error_id", ""))


class MissingDependencyError(ConvserveError, ImportError):
    """An optional package is not installed; the text says what to install."""


class RpcFailure(Protocol):
    """What `grpc.Call` of a failed call and `grpc.aio.AioRpcError` have in common."""

    def code(self) -> grpc.StatusCode:
        """Returns the status code."""

    def details(self) -> str | None:
        """Returns the status' text."""


class _Details:
    """The details of a status, unpacked; a message that is not there is empty."""

    def __init__(self, code: grpc.StatusCode, packed: Iterable[any_pb2.Any]) -> None:
        self.code = code
        self.info = details_pb2.ErrorInfo()
        self.bad_request = details_pb2.BadRequest()
        self.retry = details_pb2.RetryInfo()
        self.resource = details_pb2.ResourceInfo()
        for each in packed:
            for message in (self.info, self.bad_request, self.retry, self.resource):
                if each.Is(message.DESCRIPTOR):
                    each.Unpack(message)


def _leaves(parent: type[ConvserveError]) -> list[type[ConvserveError]]:
    return [parent, *(leaf for child in parent.__subclasses__() for leaf in _leaves(child))]


_CLASS_OF_REASON = {
    error_pb2.ErrorReason.Name(each.reason).removeprefix("ERROR_REASON_"): each
    for each in _leaves(ConvserveError)
    if each.reason and each is not InvalidArgumentError
}
# For what gRPC itself or a proxy answers, without an ErrorInfo of ours.
_CLASS_OF_CODE: dict[grpc.StatusCode, type[ConvserveError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: LayerNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
}
# gRPC refuses a message by its size before any code of ours sees it.
_MESSAGE_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
_MESSAGE_TOO_LARGE_TEXT = (
    "Expected at most {1} bytes in one message, the server's --max-message-bytes. Received a message of {0}: split the "
    "batch, or ask the operator to raise it."
)


def from_rpc_error(failure: RpcFailure) -> ConvserveError:
    """Returns the exception that the server raised, or the one that fits gRPC's own status.

    Args:
        failure: A failed call: `grpc.RpcError` as stubs raise it, or `grpc.aio.AioRpcError`.
    """
    code, text = failure.code(), failure.details() or "no details"
    call: Any = failure  # grpc_status asks for a grpc.Call, of which it uses what both kinds of failure have
    try:
        status = rpc_status.from_call(call)
        details = _Details(code, status.details if status is not None else [])
    except (ValueError, DecodeError):  # a trailer that is not ours, or contradicts the status
        details = _Details(code, [])
    if details.info.domain == DOMAIN and details.info.reason in _CLASS_OF_REASON:
        return _CLASS_OF_REASON[details.info.reason]._rebuilt(text, details)
    sizes = _MESSAGE_TOO_LARGE.search(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and sizes:
        return TooLargeError(FieldViolation("input", _MESSAGE_TOO_LARGE_TEXT.format(*sizes.groups())))
    error = _CLASS_OF_CODE.get(code, ConvserveError)._rebuilt(text, details)
    error.code = code
    return error
