"""What both clients share and neither does: channel options, deadlines, retries, requests. Nothing here does I/O."""

from __future__ import annotations

import ipaddress
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convserve import frame
from convserve.conv2d import Conv2D
from convserve.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidConfigurationError,
    InvalidRequestError,
    OverloadedError,
    RpcFailure,
    TooLargeError,
    UnavailableError,
    from_rpc_error,
    shown,
)
from convserve.layer import Layer
from convserve.plan import Plan, plan
from convserve.result import Result
from convserve.tensor import (
    FLOAT_DTYPES,
    INPUT_DTYPES,
    Array,
    dtype_number,
    numpy_dtype,
    standard_array,
    standard_dtype,
)
from convserve.v1 import convolution_service_pb2, layer_pb2

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 60.0
_LARGEST_MESSAGE_BYTES = 2**31 - 2**16  # protobuf's own bound, less what is beside the tensor
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:", "vsock:")  # of gRPC's targets

Layers = Layer | Conv2D | Sequence[Layer | Conv2D]
"""What `convolve` takes: one layer or several, each with weights or as a configuration alone."""


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
    """

    attempts: int = 5
    initial_s: float = 0.1
    factor: float = 2.0
    longest_s: float = 5.0

    def delay_s(self, attempt: int, error: Exception) -> float | None:
        """Returns how long to wait after the given attempt (from 1) failed, or None to give up."""
        if attempt >= self.attempts or not isinstance(error, UnavailableError | OverloadedError):
            return None
        backoff = min(self.longest_s, self.initial_s * self.factor ** (attempt - 1)) * random.uniform(0.5, 1.0)
        return max(backoff, error.retry_after_s) if isinstance(error, OverloadedError) else backoff


class Call:
    """One call's deadline and attempts, whoever does the sending and the sleeping."""

    def __init__(self, rule: RetryRule, timeout: float) -> None:
        self._rule = rule
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._attempt = 1

    def remaining_s(self) -> float:
        """Returns the seconds that are left."""
        return max(0.0, self._deadline - time.monotonic())

    def delay_after(self, failure: RpcFailure) -> float:
        """Returns the seconds to sleep before the next attempt.

        Raises:
            ConvserveError: The failure as one of the tree, if it is not to be retried.
        """
        error = from_rpc_error(failure)
        if isinstance(error, DeadlineExceededError):
            attempts = f" in {self._attempt} attempts" if self._attempt > 1 else ""
            raise DeadlineExceededError(
                f"Expected an answer within timeout={self._timeout:g} seconds. Received none{attempts}: "
                "raise the timeout, or send less in one call."
            ) from None
        delay = self._rule.delay_s(self._attempt, error)
        if delay is None or delay >= self.remaining_s():
            raise error from None
        self._attempt += 1
        return delay


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


def channel_target(target: str | Sequence[str]) -> str:
    """Returns gRPC's name of one or several addresses.

    Args:
        target: "host:port", "unix:///path", any other gRPC target with its scheme, or several "ip:port" as a list or
            separated by commas.

    Raises:
        InvalidRequestError: For an empty target, or several of which one is not an IP address.
    """
    addresses = [part.strip() for part in target.split(",")] if isinstance(target, str) else list(target)
    if not addresses or not all(isinstance(each, str) and each for each in addresses):
        text = f"Expected 'host:port', 'unix:///path', or several 'ip:port'. Received {shown(target)}."
        raise InvalidRequestError(FieldViolation("target", text))
    if len(addresses) == 1:
        # With dns:/// every address of a name is used, not only the first that answers.
        return addresses[0] if addresses[0].startswith(_SCHEMES) else f"dns:///{addresses[0]}"
    versions = {_ip_version(each.replace("localhost:", "127.0.0.1:")) for each in addresses}
    if len(versions) != 1 or 0 in versions:
        text = (
            "Expected several addresses to be IP addresses of one version with a port; for host names give one DNS "
            f"name that resolves to all of them. Received {shown(target)}."
        )
        raise InvalidRequestError(FieldViolation("target", text))
    return f"ipv{versions.pop()}:" + ",".join(each.replace("localhost:", "127.0.0.1:") for each in addresses)


def _ip_version(address: str) -> int:
    host = address.rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return 0


def channel_options(version: str) -> list[tuple[str, Any]]:
    """Returns the options of a channel."""
    return [
        # A tensor is as large as it is: protobuf's 2 GiB is the bound, not gRPC's default of 4 MiB.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # Replicas are interchangeable, so calls are spread over all addresses.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        # Retries are the client's own (RetryRule): gRPC's would not repeat a tensor.
        ("grpc.enable_retries", 0),
        # A server that restarts is found again within seconds, not after gRPC's default of up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.primary_user_agent", f"convserve/{version}"),
    ]


def layers_of(layers: Layers) -> list[Layer]:
    """Returns the layers of a call as a list.

    Raises:
        InvalidRequestError: If there are none, or something else is among them.
    """
    listed = list(layers) if isinstance(layers, Sequence) else [layers]
    if not listed or not all(isinstance(each, Layer | Conv2D) for each in listed):
        text = f"Expected a Layer or Conv2D, or a list of at least one. Received {shown(layers)}."
        raise InvalidRequestError(FieldViolation("layers", text))
    return [each if isinstance(each, Layer) else Layer(each) for each in listed]


def check_call(layers: Sequence[Layer], input_shape: Sequence[int] | None, input_dtype: Any, output_dtype: Any) -> Plan:
    """Returns the plan of a call, having checked all that can be checked without a server.

    The server runs the same checks from the same code, so both say the same words.

    Raises:
        InvalidArgumentError: With several layers, fields begin with "layers[i].".
    """
    found = plan([each.config for each in layers], input_shape, input_dtype=input_dtype, output_dtype=output_dtype)
    for index, (layer, step) in enumerate(zip(layers, found.layers, strict=True)):
        try:
            layer.check_input_channels(step.kernel_shape[2] * layer.config.groups)
        except InvalidConfigurationError as error:
            raise (error.under(f"layers[{index}].") if len(layers) > 1 else error) from None
    return found


@dataclass(frozen=True)
class ConvolveRequest:
    """A forward pass' request: the message without its tensor, and the tensor in the caller's own memory."""

    message: convolution_service_pb2.ConvolveRequest
    input: Array

    def serialize(self) -> bytes:
        """Returns the message's bytes."""
        return frame.write(self.message, self.input)


def convolve_request(layers: Layers, x: Any, output_dtype: Any) -> ConvolveRequest:
    """Returns the request of a forward pass.

    Raises:
        InvalidArgumentError: If anything is wrong with layers or input; TooLargeError above protobuf's 2 GiB.
    """
    listed = layers_of(layers)
    array = standard_array(x, "input", INPUT_DTYPES)
    found = check_call(listed, array.shape, array.dtype.name, output_dtype)
    numpy_dtype(found.output_dtype)  # bfloat16 may need a package, which is better said now than after the work
    request_bytes = array.nbytes + found.weight_bytes
    for what, size in (("request", request_bytes), ("response", found.output_bytes)):
        if size >= _LARGEST_MESSAGE_BYTES:
            text = f"Expected a {what} below 2 GiB, protobuf's bound. Received one of {size} bytes: split the batch."
            raise TooLargeError(FieldViolation("input", text))
    message = convolution_service_pb2.ConvolveRequest(
        layers=_references(listed), output_dtype=_output_dtype_number(output_dtype)
    )
    return ConvolveRequest(message, array)


CONVOLVE: dict[str, Any] = {
    "method": "/convserve.v1.ConvolutionService/Convolve",
    "request_serializer": ConvolveRequest.serialize,
    "response_deserializer": Result.parse,
}
"""The arguments with which a channel makes Convolve's call without copying tensors through messages."""


def plan_request(
    layers: Layers, input_shape: Sequence[int] | None, input_dtype: Any, output_dtype: Any
) -> convolution_service_pb2.PlanRequest:
    """Returns the request of a plan.

    Raises:
        InvalidArgumentError: If anything is wrong with layers or shape.
    """
    listed = layers_of(layers)
    check_call(listed, input_shape, input_dtype, output_dtype)
    return convolution_service_pb2.PlanRequest(
        layers=_references([Layer(each.config) for each in listed]),  # a plan needs no weights
        input_shape=() if input_shape is None else tuple(input_shape),
        input_dtype=dtype_number(standard_dtype(input_dtype, "input_dtype", INPUT_DTYPES)),
        output_dtype=_output_dtype_number(output_dtype),
    )


def _references(layers: Sequence[Layer]) -> list[layer_pb2.LayerReference]:
    return [layer_pb2.LayerReference(inline=each.to_message()) for each in layers]


def _output_dtype_number(output_dtype: Any) -> Any:
    name = None if output_dtype is None else standard_dtype(output_dtype, "output_dtype", FLOAT_DTYPES)
    return dtype_number(name)
