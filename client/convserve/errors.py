"""What can go wrong, as one tree of exceptions. The class that the server raises is the class that the client raises.

    ConvserveError
    ├── InvalidArgumentError (ValueError)     INVALID_ARGUMENT: correct the call; `violations` names the fields
    │   ├── InvalidRequestError                   the request is incomplete or contradicts itself
    │   ├── InvalidConfigurationError             a Conv2D parameter that Keras refuses too
    │   ├── InvalidTensorError                    a tensor contradicts itself, or does not fit the layer
    │   ├── InvalidWeightsError                   weights are missing or don't fit
    │   └── TooLargeError                         more than this server ever takes in one call
    ├── LayerNotFoundError (LookupError)      FAILED_PRECONDITION (digest) or NOT_FOUND (name)
    ├── NameConflictError                     ABORTED: the name leads elsewhere than expected; `found` says where
    ├── OverloadedError                       RESOURCE_EXHAUSTED: retry after `retry_after_s`
    ├── OutOfMemoryError                      RESOURCE_EXHAUSTED: send smaller batches
    ├── DeadlineExceededError (TimeoutError)  DEADLINE_EXCEEDED: raise the timeout
    ├── UnauthenticatedError                  UNAUTHENTICATED
    ├── PermissionDeniedError                 PERMISSION_DENIED
    ├── UnavailableError (ConnectionError)    UNAVAILABLE: nobody answered, or the server is stopping
    │   └── SharedMemoryLostError                 the server does not know the shared memory that the call names
    ├── UnimplementedError                    UNIMPLEMENTED: this server does not have the call
    ├── InternalError                         INTERNAL: a defect; the server's log has more under `error_id`
    └── MissingDependencyError (ImportError)  raised locally only: an optional package is missing

Each class knows its status code and its `ErrorReason` (proto/convserve/v1/error.proto); `protocol/status.py` puts
it on the wire.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from convserve.v1 import error_pb2

if TYPE_CHECKING:
    import grpc

_MAX_VALUE = 160  # characters of a value that a text shows
_OURS = ("convserve", "convserve_server")


def short_repr(value: object) -> str:
    """Returns `repr(value)`, shortened so that a hostile or huge value cannot fill an error message."""
    length = len(value) if isinstance(value, str | bytes | list | tuple) else 0
    try:
        text = repr(value[:_MAX_VALUE] if length > _MAX_VALUE else value)  # type: ignore[index]
    except Exception:  # such as an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be shown"
    if max(length, len(text)) <= _MAX_VALUE:
        return text
    return f"{text[:_MAX_VALUE]}... ({max(length, len(text))} characters)"


def printable(text: str) -> str:
    """Returns another program's text with its control characters escaped, so that no terminal obeys them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field: the parameter by its Keras name, or "input", "kernel" or "bias"."""

    field: str
    description: str
    """What was expected, what was received, what to do."""


class ConvserveError(Exception):
    """The root of everything that convserve raises on purpose.

    Attributes:
        code_name: The name of the gRPC status code.
        reason: The `ErrorReason`.
    """

    code_name: str = "UNKNOWN"
    reason: ClassVar[int] = error_pb2.ERROR_REASON_UNSPECIFIED

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        import grpc  # late: what schedules and computes raises these errors, and needs no gRPC

        return grpc.StatusCode[self.code_name]

    @code.setter  # which unpickling an error of version 0.1 calls
    def code(self, code: grpc.StatusCode) -> None:
        self.code_name = code.name


class InvalidArgumentError(ConvserveError, ValueError):
    """The call is wrong and will stay wrong until it is changed.

    Attributes:
        violations: Every wrong field that was found, in the order of Keras' parameters.
    """

    code_name = "INVALID_ARGUMENT"
    reason = error_pb2.ERROR_REASON_INVALID_REQUEST

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = violations
        super().__init__("\n".join(f"{wrong.field}: {wrong.description}" for wrong in violations))

    @classmethod
    def for_field(cls, field: str, expected: str, received: object, hint: str = "") -> Self:
        """Returns the error for one field: "Expected ... Received ...", and what else helps."""
        text = f"Expected {expected}. Received {received}."
        return cls(FieldViolation(field, f"{text} {hint}" if hint else text))

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make it again, so that it can be copied and sent between processes."""
        return type(self), self.violations, self.__dict__

    def under(self, prefix: str) -> Self:
        """Returns the same error with `prefix` before every field."""
        return type(self)(*(FieldViolation(prefix + wrong.field, wrong.description) for wrong in self.violations))


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
    """A tensor contradicts itself, or the layer cannot take it as its input, or give its output in it."""

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

    code_name = "FAILED_PRECONDITION"
    reason = error_pb2.ERROR_REASON_LAYER_NOT_FOUND

    def __init__(self, message: str, *, layer: str = "", by_name: bool = False) -> None:
        super().__init__(message)
        self.layer = layer
        if by_name:
            self.code_name = "NOT_FOUND"


class NameConflictError(ConvserveError):
    """A name leads elsewhere than the call expects of it. Nothing was changed.

    Attributes:
        name: The name.
        found: What is there now: the digest of the layer in hexadecimal, or "absent" if there is no such name. A new
            attempt may give it as `expect`.
        version: The number of the version that leads there; 0 if there is no such name.
    """

    code_name = "ABORTED"
    reason = error_pb2.ERROR_REASON_NAME_CONFLICT

    def __init__(self, message: str, *, name: str = "", found: str = "", version: int = 0) -> None:
        super().__init__(message)
        self.name, self.found, self.version = name, found, version


class OverloadedError(ConvserveError):
    """The server is too busy now.

    Attributes:
        retry_after_s: Seconds after which a retry may succeed.
    """

    code_name = "RESOURCE_EXHAUSTED"
    reason = error_pb2.ERROR_REASON_OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutOfMemoryError(ConvserveError):
    """The device's memory did not suffice; send smaller batches."""

    code_name = "RESOURCE_EXHAUSTED"
    reason = error_pb2.ERROR_REASON_OUT_OF_MEMORY


class DeadlineExceededError(ConvserveError, TimeoutError):
    """The answer did not come within the call's timeout."""

    code_name = "DEADLINE_EXCEEDED"


class UnauthenticatedError(ConvserveError):
    """The call has no credentials, or unknown ones."""

    code_name = "UNAUTHENTICATED"
    reason = error_pb2.ERROR_REASON_UNAUTHENTICATED


class PermissionDeniedError(ConvserveError):
    """The credentials don't allow this call."""

    code_name = "PERMISSION_DENIED"
    reason = error_pb2.ERROR_REASON_PERMISSION_DENIED


class UnavailableError(ConvserveError, ConnectionError):
    """Nobody answered, the connection broke, or the server is starting or stopping.

    Attributes:
        may_be_done: Whether a server may have carried out the call all the same: its answer was lost. Not so where no
            server was reached, or the server itself refused the call.
    """

    may_be_done: bool = False

    code_name = "UNAVAILABLE"
    reason = error_pb2.ERROR_REASON_UNAVAILABLE


class SharedMemoryLostError(UnavailableError):
    """The server does not know the shared memory that the call names; the client sends the tensor itself instead."""

    reason = error_pb2.ERROR_REASON_SHARED_MEMORY_LOST


class UnimplementedError(ConvserveError):
    """This server does not have the call."""

    code_name = "UNIMPLEMENTED"
    reason = error_pb2.ERROR_REASON_UNIMPLEMENTED


class InternalError(ConvserveError):
    """A defect of the server's.

    Attributes:
        error_id: Under this id the server's log has the details. Empty if the failure came from elsewhere.
    """

    code_name = "INTERNAL"
    reason = error_pb2.ERROR_REASON_INTERNAL

    def __init__(self, message: str, *, error_id: str = "") -> None:
        super().__init__(message)
        self.error_id = error_id


class MissingDependencyError(ConvserveError, ImportError):
    """An optional package is not installed, or broken; the text says what to install, or why it cannot be imported."""


@contextmanager
def needing(text: str) -> Iterator[None]:
    """Raises MissingDependencyError for what the block cannot import: `text`, what to install, or why it failed."""
    try:
        yield
    except ConvserveError:
        raise
    except Exception as error:
        raise MissingDependencyError(why_not_imported(error, text)) from error


def why_not_imported(error: Exception, text: str) -> str:
    """Returns `text`, what to install, if a package is missing, or a line that says why one that is there failed.

    It may raise anything, as where it was compiled for another NumPy. A module of our own that is missing is a defect,
    and so is what it raises, and what is raised where nothing is imported: the error itself is raised.
    """
    first = last = ""  # package within our last call: the one that this imports, and the one that fails
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in _OURS:
            first = last = ""
        elif package != "importlib":
            last = package
            if not first and frame.f_code.co_name == "<module>":
                first = package
    name = (error.name or "") if isinstance(error, ImportError) else ""
    if name.startswith(tuple(f"{ours}." for ours in _OURS)) or not (first or isinstance(error, ImportError)):
        raise error
    if not last and isinstance(error, ModuleNotFoundError):
        return text
    broken = (last or name.partition(".")[0]) if isinstance(error, ImportError) else first
    return f"{broken} is installed and cannot be imported: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Returns why in a line: texts of several, as of numpy and TensorFlow, wrap the error that says it."""
    while "\n" in str(error).strip() and (wrapped := error.__cause__ or error.__context__):
        error = wrapped
    return " ".join(str(error).split()) or type(error).__name__
