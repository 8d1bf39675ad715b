"""Calls past the client: a channel that sends any bytes, small valid messages, and what every refusal has in common."""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from convserve.v1 import (
    conv2d_pb2,
    convolution_service_pb2,
    convolution_service_pb2_grpc,
    error_pb2,
    layer_pb2,
    layer_service_pb2,
    tensor_pb2,
)
from convserve.v1.convolution_service_pb2 import ConvolveRequest, PlanRequest

RPCS: list[MethodDescriptor] = [
    method
    for file in (convolution_service_pb2, layer_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
# gRPC's bound of all trailers together, less what the status itself and its names take.
MAX_METADATA_BYTES = 8192 - 256
_PLAIN = bytes(range(0x20, 0x7F)).replace(b"%", b"")  # what gRPC's percent-encoding leaves as it is


class RawCaller:
    """A caller that knows no bounds."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.stub: Any = convolution_service_pb2_grpc.ConvolutionServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def send(self, rpc: MethodDescriptor, *messages: bytes) -> list[bytes]:
        """Sends bytes to an RPC, whichever way it streams, and returns the messages that come back."""
        path = f"/{rpc.containing_service.full_name}/{rpc.name}"
        return list(self.channel.stream_stream(path)(iter(messages), timeout=60))

    def check_health(self, timeout: float = 60) -> None:
        """Asserts that the server is healthy."""
        assert self.health.Check(health_pb2.HealthCheckRequest(), timeout=timeout).status == 1

    def check_service(self) -> None:
        """Asserts that the server is healthy, and answers this caller rightly."""
        self.check_health()
        request = convolve_request(layer(weights=weights(np.ones((1, 1, 1, 1)))))
        assert self.stub.Convolve(request, timeout=60).output.data == request.input.data


@contextmanager
def raw_caller(target: str) -> Iterator[RawCaller]:
    """Connects to a server by a connection of its own, as another caller's streams may still count against theirs."""
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(target, options=options) as channel:
        yield RawCaller(channel)


# Messages: each is valid, and a test spoils one thing


def conv2d(**changes: Any) -> conv2d_pb2.Conv2D:
    """Returns a 1 x 1 convolution without a bias."""
    size = conv2d_pb2.Size2D(height=1, width=1)
    return conv2d_pb2.Conv2D(**{"filters": 1, "kernel_size": size, "data_format": 1, "use_bias": False} | changes)


def layer(config: Any = None, **parts: Any) -> layer_pb2.LayerReference:
    """Returns a layer that travels with its call."""
    return layer_pb2.LayerReference(inline=layer_pb2.InlineLayer(conv2d=config or conv2d(), **parts))


def tensor(array: Any, **changes: Any) -> tensor_pb2.Tensor:
    """Returns a float32 tensor."""
    elements = np.asarray(array, "<f4")
    return tensor_pb2.Tensor(**{"dtype": 1, "shape": elements.shape, "data": elements.tobytes()} | changes)


def weights(kernel: Any = None, bias: Any = None) -> layer_pb2.Weights:
    """Returns weights."""
    parts = {name: value for name, value in (("kernel", kernel), ("bias", bias)) if value is not None}
    made = {name: value if isinstance(value, tensor_pb2.Tensor) else tensor(value) for name, value in parts.items()}
    return layer_pb2.Weights(**made)


def convolve_request(*layers: Any, **changes: Any) -> ConvolveRequest:
    """Returns the request of a forward pass over a (1, 2, 2, 1) input."""
    image = tensor(np.arange(4).reshape(1, 2, 2, 1))
    return ConvolveRequest(**{"layers": layers or [layer()], "input": image} | changes)


def plan_request(*layers: Any, **changes: Any) -> PlanRequest:
    """Returns the request of the same call's plan."""
    return PlanRequest(**{"layers": layers or [layer()], "input_shape": (1, 2, 2, 1)} | changes)


# Refusals


def checked(failure: Any, code: grpc.StatusCode, reason: str) -> tuple[str, dict[str, str]]:
    """Asserts that a failed call has all that the contract promises; returns its text, and descriptions by field."""
    text = failure.details()
    assert failure.code() is code, (failure.code(), text)
    status = rpc_status.from_call(failure)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for each in status.details:
        for message in (info, bad_request):
            if each.Is(message.DESCRIPTOR):
                each.Unpack(message)
    assert (info.domain, info.reason) == ("convserve.v1", reason), text
    assert error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    found = {each.field: each.description for each in bad_request.field_violations}
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert found, text
        for field, description in found.items():
            assert field
            assert re.fullmatch(r"Expected .*Received .*", description, re.DOTALL), description
    assert "Traceback" not in text
    trailer = len(base64.b64encode(status.SerializeToString()))
    assert len(urllib.parse.quote(text, safe=_PLAIN)) + trailer < MAX_METADATA_BYTES
    return text, found


_WRONG_CALL = {
    grpc.StatusCode.INVALID_ARGUMENT: (
        "INVALID_REQUEST", "INVALID_CONFIGURATION", "INVALID_TENSOR", "INVALID_WEIGHTS", "TOO_LARGE",
    ),
    grpc.StatusCode.NOT_FOUND: ("LAYER_NOT_FOUND",),
    grpc.StatusCode.FAILED_PRECONDITION: ("LAYER_NOT_FOUND",),
    grpc.StatusCode.ABORTED: ("NAME_CONFLICT",),
    grpc.StatusCode.UNIMPLEMENTED: ("UNIMPLEMENTED",),
    grpc.StatusCode.UNAVAILABLE: ("SHARED_MEMORY_LOST",),  # a damaged message may ask for memory that nobody shares
}  # fmt: skip


def refused_as(failure: Any) -> str:
    """Asserts that a failed call is refused as the caller's fault, in full form; returns the reason."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(failure)
    assert status is not None, (failure.code(), failure.details())
    assert status.details[0].Unpack(info)
    assert info.reason in _WRONG_CALL.get(failure.code(), ()), (failure.code(), failure.details())
    checked(failure, failure.code(), info.reason)
    return info.reason
