"""What both clients share and neither does: deadlines, retries, requests. Nothing here does I/O."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convserve import frame
from convserve.conv2d import Conv2D
from convserve.errors import (
    ConvserveError,
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    LayerNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    TooLargeError,
    UnavailableError,
    shown,
)
from convserve.layer import Layer, planned, planned_call
from convserve.plan import Plan
from convserve.result import Result
from convserve.status import RpcFailure, from_rpc_error
from convserve.stored import KnownLayer
from convserve.tensor import (
    FLOAT_DTYPES,
    INPUT_DTYPES,
    Array,
    dtype_number,
    name_of,
    numpy_dtype,
    standard_array,
    standard_dtype,
)
from convserve.v1 import convolution_service_pb2

DEFAULT_TIMEOUT_S = 60.0
_MOST_STEPS = 50  # in which a delay grows: a call may be sent so often that the power has no float
_EARNED = 0.5  # retries that an answered call adds to the budget
_LARGEST_WHOLE_BYTES = 2**20  # of a tensor that goes in one message; above it pieces are quicker (docs/performance.md)
_LARGEST_MESSAGE_BYTES = 2**31 - 2**16  # protobuf's own bound, less what is beside the tensor

OneLayer = Layer | Conv2D | KnownLayer
Layers = OneLayer | Sequence[OneLayer]
"""What `convolve` takes: one layer or several, each stored, with weights, or as a configuration alone."""


@dataclass(frozen=True)
class RetryRule:
    """When and how often a call that failed is sent again; a convolution is pure, so that is always safe.

    Retried are calls that nobody answered (UNAVAILABLE) and calls that a server refused for the time being
    (OVERLOADED, after the delay that it names), as long as the call's timeout allows. The client does it itself because
    gRPC's own retries silently leave out messages above 256 KiB.

    Attributes:
        attempts: The most times that a call is sent, the first included; 1 turns retries off.
        initial_s: The longest delay before the second attempt, in seconds. Delays are drawn from half of it to all.
        factor: Each further delay is longer by it.
        longest_s: The longest delay.
        budget: Refused calls that a client may send again before others of its calls are answered, each of which adds
            half a call to it: so that retries cannot make an overload worse.
    """

    attempts: int = 5
    initial_s: float = 0.1
    factor: float = 2.0
    longest_s: float = 5.0
    budget: float = 100.0

    def delay_s(self, attempt: int, error: Exception) -> float | None:
        """Returns how long to wait after the given attempt (from 1) failed, or None to give up."""
        if attempt >= self.attempts or not isinstance(error, UnavailableError | OverloadedError):
            return None
        growth = self.factor ** min(attempt - 1, _MOST_STEPS)
        backoff = min(self.longest_s, self.initial_s * growth) * random.uniform(0.5, 1.0)
        if isinstance(error, OverloadedError):  # those that were refused together are not to come back together
            return max(backoff, error.retry_after_s * random.uniform(1.0, 1.5))
        return backoff


class RetryBudget:
    """What is left of a client's retries of calls that were refused. Any thread may call its methods."""

    def __init__(self, rule: RetryRule) -> None:
        """Starts full."""
        self._most = self._left = rule.budget
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Notes an answered call."""
        if self._left < self._most:
            with self._lock:
                self._left = min(self._most, self._left + _EARNED)

    def take(self) -> bool:
        """Takes one retry; returns False, and takes nothing, if none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Deadline:
    """When something must be done that may take several calls.

    Attributes:
        timeout: The seconds that it was given.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    @classmethod
    def of(cls, timeout: Timeout, default: float) -> Deadline:
        """Returns the deadline itself, or one of so many seconds from now on.

        Raises:
            InvalidRequestError: If the timeout is not a number above 0.
        """
        return timeout if isinstance(timeout, Deadline) else cls(checked_timeout(timeout, default))

    def remaining_s(self) -> float:
        """Returns the seconds that are left."""
        return max(0.0, self._end - time.monotonic())

    def exceeded(self, attempts: int = 1) -> DeadlineExceededError:
        """Returns the error of what was not done in time."""
        tried = f" in {attempts} attempts" if attempts > 1 else ""
        return DeadlineExceededError(
            f"Expected an answer within timeout={self.timeout:g} seconds. Received none{tried}: "
            "raise the timeout, or send less in one call."
        )


Timeout = float | Deadline | None
"""How long a call may take: seconds, until when, or the client's default."""


class Call:
    """One call's attempts, whoever does the sending and the sleeping."""

    def __init__(self, rule: RetryRule, deadline: Deadline, budget: RetryBudget | None = None) -> None:
        self._rule = rule
        self._deadline = deadline
        self._budget = budget or RetryBudget(rule)
        self._attempt = 1

    def remaining_s(self) -> float:
        """Returns the seconds that are left."""
        return self._deadline.remaining_s()

    def delay_after(self, failure: RpcFailure | ConvserveError) -> float:
        """Returns the seconds to sleep before the next attempt.

        Raises:
            ConvserveError: The failure as one of the tree, if it is not to be retried.
        """
        error = failure if isinstance(failure, ConvserveError) else from_rpc_error(failure)
        # A call whose time is up while it sends is told as one that broke off.
        late = isinstance(error, UnavailableError) and not self.remaining_s()
        if late or isinstance(error, DeadlineExceededError):
            raise self._deadline.exceeded(self._attempt) from None
        delay = self._rule.delay_s(self._attempt, error)
        if delay is None or delay >= self.remaining_s():
            raise error from None
        if isinstance(error, OverloadedError) and not self._budget.take():
            raise error from None
        self._attempt += 1
        return delay

    def answered(self) -> None:
        """Notes that it has been."""
        self._budget.earn()


def passed_over(failure: RpcFailure | ConvserveError, before: ConvserveError | None) -> ConvserveError:
    """Returns what to raise if no other server has an answer, where one of several does not have it.

    Args:
        failure: Why this one does not.
        before: What this returned for the server before.

    Raises:
        ConvserveError: The failure, if the other servers are not to be asked.
    """
    error = failure if isinstance(failure, ConvserveError) else from_rpc_error(failure)
    if not isinstance(error, LayerNotFoundError | UnavailableError):
        raise error from None
    return before if isinstance(before, LayerNotFoundError) else error


def check_cannot_keep(failure: RpcFailure | ConvserveError) -> None:
    """Checks that a server failed to store a layer because it has no room for it, or keeps none for this caller.

    Raises:
        ConvserveError: The failure, if it is another.
    """
    error = failure if isinstance(failure, ConvserveError) else from_rpc_error(failure)
    if not isinstance(error, OverloadedError | PermissionDeniedError | TooLargeError):
        raise error from None


def checked_timeout(timeout: float | None, default: float) -> float:
    """Returns a call's timeout in seconds.

    Raises:
        InvalidRequestError: If it is not a number above 0.
    """
    found = default if timeout is None else timeout
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < float("inf"):
        text = f"Expected a number of seconds above 0. Received timeout={shown(found)}."
        raise InvalidRequestError(FieldViolation("timeout", text))
    return float(found)


def layers_of(layers: Layers) -> list[Layer | KnownLayer]:
    """Returns the layers of a call as a list.

    Raises:
        InvalidRequestError: If there are none, or something else is among them.
    """
    listed = list(layers) if isinstance(layers, Sequence) else [layers]
    if not listed or not all(isinstance(each, OneLayer) for each in listed):
        text = f"Expected a Layer, Conv2D or stored layer, or a list of at least one. Received {shown(layers)}."
        raise InvalidRequestError(FieldViolation("layers", text))
    return [Layer(each) if isinstance(each, Conv2D) else each for each in listed]


@dataclass(frozen=True)
class ConvolveRequest:
    """A forward pass' request: the message without its tensor, and the tensor in the caller's own memory.

    Attributes:
        layers: The layers.
        message: The message.
        input: The tensor.
        plan: What the call does.
    """

    layers: list[Layer | KnownLayer]
    message: convolution_service_pb2.ConvolveRequest
    input: Array
    plan: Plan

    def serialize(self) -> bytes:
        """Returns the message's bytes."""
        return frame.write(self.message, self.input)

    @property
    def is_large(self) -> bool:
        """Whether the tensors are to go in pieces."""
        return max(self.input.nbytes, self.plan.output_bytes) > _LARGEST_WHOLE_BYTES

    def carrying_layers(self) -> ConvolveRequest:
        """Returns the same request with the stored layers' weights in it, for servers that cannot keep them.

        Raises:
            TooLargeError: For weights above protobuf's 2 GiB.
        """
        locals_ = [each.local if isinstance(each, KnownLayer) else each for each in self.layers]
        _check_carried(locals_, "make room for them on the server")
        message = convolution_service_pb2.ConvolveRequest()
        message.CopyFrom(self.message)
        message.ClearField("layers")
        message.layers.extend(each.to_carried_reference() for each in self.layers)
        return ConvolveRequest(self.layers, message, self.input, self.plan)


def convolve_request(layers: Layers, x: Any, output_dtype: Any, batching: bool = True) -> ConvolveRequest:
    """Returns the request of a forward pass.

    Raises:
        InvalidArgumentError: If anything is wrong with layers or input.
        TooLargeError: For weights above protobuf's 2 GiB.
    """
    listed = layers_of(layers)
    array = standard_array(x, "input", INPUT_DTYPES)
    wanted = output_name(output_dtype)
    found = planned_call(listed, array.shape, name_of(array), wanted)
    numpy_dtype(found.output_dtype)  # bfloat16 may need a package, which is better said now than after the work
    _check_carried(listed, "put the layers, and call what `put` returns")
    message = convolution_service_pb2.ConvolveRequest(
        layers=[each.to_reference() for each in listed],
        output_dtype=dtype_number(wanted),
        unbatched=not batching,
    )
    return ConvolveRequest(listed, message, array, found)


def _check_carried(layers: Sequence[Layer | KnownLayer | None], remedy: str) -> None:
    carried = sum(each.kernel.nbytes for each in layers if isinstance(each, Layer) and each.kernel is not None)
    if carried >= _LARGEST_MESSAGE_BYTES:
        text = (
            "Expected weights below 2 GiB, protobuf's bound for what a call carries. "
            f"Received {carried} bytes: {remedy}."
        )
        raise TooLargeError(FieldViolation("layers", text))


CONVOLVE: dict[str, Any] = {
    "method": "/convserve.v1.ConvolutionService/Convolve",
    "request_serializer": ConvolveRequest.serialize,
    "response_deserializer": Result.parse,
}
"""The arguments with which a channel makes Convolve's call without copying tensors through messages."""

CONVOLVE_STREAM: dict[str, Any] = {"method": "/convserve.v1.ConvolutionService/ConvolveStream"}
"""The same for ConvolveStream, in messages that `stream` writes and reads."""


def plan_request(
    layers: Layers, input_shape: Sequence[int] | None, input_dtype: Any, output_dtype: Any
) -> convolution_service_pb2.PlanRequest:
    """Returns the request of a plan.

    Raises:
        InvalidArgumentError: If anything is wrong with layers or shape.
    """
    listed = layers_of(layers)
    planned(listed, input_shape, input_dtype, output_dtype)
    return convolution_service_pb2.PlanRequest(
        layers=[each.to_plan_reference() for each in listed],
        input_shape=() if input_shape is None else tuple(input_shape),
        input_dtype=dtype_number(standard_dtype(input_dtype, "input_dtype", INPUT_DTYPES)),
        output_dtype=dtype_number(output_name(output_dtype)),
    )


def output_name(output_dtype: Any) -> str | None:
    """Returns the name of the dtype that an output is asked for in; None for the last layer's compute dtype.

    Raises:
        InvalidTensorError: For another than a floating-point dtype.
    """
    return None if output_dtype is None else standard_dtype(output_dtype, "output_dtype", FLOAT_DTYPES)
