"""The Open Inference Protocol past any client of it: generic calls with the server's own messages, and raw bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import MethodDescriptor

from convserve.tensors.codec import Array, numpy_dtype
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.wire import SERVICE, SERVICE_NAME

INFERENCE_RPCS: list[MethodDescriptor] = list(SERVICE.methods)
DATATYPES = {
    "FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "FP64": "float64", "UINT8": "uint8", "INT8": "int8",
}  # fmt: skip
Tensor = messages.ModelInferRequest.InferInputTensor
Output = messages.ModelInferRequest.InferRequestedOutputTensor


class InferenceCaller:
    """A caller on a channel."""

    def __init__(self, channel: grpc.Channel, metadata: Any = ()) -> None:
        self.channel = channel
        self.metadata = metadata

    def call(self, method: str, /, timeout: float = 60, **fields: Any) -> Any:
        """Calls a method whose request has these fields."""
        request = getattr(messages, f"{method}Request")(**fields)
        parse = getattr(messages, f"{method}Response").FromString
        call = self.channel.unary_unary(f"/{SERVICE_NAME}/{method}", None, parse)
        return call(request.SerializeToString(), timeout=timeout, metadata=self.metadata)

    def infer(self, request: Any, timeout: float = 60) -> Any:
        """Sends a ModelInferRequest, or the bytes of one."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        parse = messages.ModelInferResponse.FromString
        method = self.channel.unary_unary(f"/{SERVICE_NAME}/ModelInfer", None, parse)
        return method(data, timeout=timeout, metadata=self.metadata)

    def stream(self, requests: Any, timeout: float = 60) -> Any:
        """Sends ModelInferRequests in a stream; returns the call."""
        parse = messages.ModelStreamInferResponse.FromString
        method = self.channel.stream_stream(f"/{SERVICE_NAME}/ModelStreamInfer", None, parse)
        data = (each.SerializeToString() for each in requests)
        return method(data, timeout=timeout, metadata=self.metadata)

    def statistics(self, name: str, version: str = "") -> Any:
        """Returns the figures of a model's only or given version."""
        (found,) = self.call("ModelStatistics", name=name, version=version).model_stats
        return found


@contextmanager
def inference_caller(target: str, metadata: Any = ()) -> Iterator[InferenceCaller]:
    """Connects to a server by a connection of its own: one that has just ended may otherwise be used again."""
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(target, options=options) as channel:
        yield InferenceCaller(channel, metadata)


def datatype(array: Array) -> str:
    """Returns what the protocol calls an array's dtype."""
    return next(name for name, dtype in DATATYPES.items() if dtype == array.dtype.name)


def raw_request(model: str, outputs: Any = (), parameters: Any = (), **inputs: Any) -> Any:
    """Returns a request with raw contents."""
    arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    request = messages.ModelInferRequest(
        model_name=model,
        inputs=[Tensor(name=name, datatype=datatype(each), shape=each.shape) for name, each in arrays.items()],
        raw_input_contents=[each.tobytes() for each in arrays.values()],
        outputs=outputs,
    )
    for name, value in dict(parameters).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return request


def place(tensor: Any, region: str, size: int, offset: int = 0) -> Any:
    """Lets an input or output be in shared memory; returns it."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset
    return tensor


def output_of(response: Any) -> Array:
    """Returns a response's output."""
    (tensor,), (raw,) = response.outputs, response.raw_output_contents
    return np.frombuffer(raw, numpy_dtype(DATATYPES[tensor.datatype])).reshape(tensor.shape)
