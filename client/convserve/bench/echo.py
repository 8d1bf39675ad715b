"""The ceiling: as many bytes there and back over the same kind of connection, with nothing done to them."""

from __future__ import annotations

from typing import Any

import grpc

from convserve.protocol.status import from_rpc_error
from convserve.tensors import framing
from convserve.v1.convolution_service_pb2 import EchoRequest

_METHOD = "/convserve.v1.ConvolutionService/Echo"


class Echo:
    """Sends zeros over a channel, and gets zeros within `timeout` seconds."""

    def __init__(self, channel: Any, timeout: float) -> None:
        self._call: Any = channel.unary_unary(_METHOD)  # bytes as they are: no message is made of them
        self._timeout = timeout

    @staticmethod
    def request(sent: int, received: int) -> bytes:
        """Returns a request that sends and asks for so many bytes."""
        head = EchoRequest(output_bytes=received).SerializeToString()
        return b"".join((head, framing.opening(sent), bytes(sent)))

    def __call__(self, request: bytes) -> bytes:
        """Returns the answer's bytes, or raises a ConvserveError."""
        try:
            return self._call(request, timeout=self._timeout)  # type: ignore[no-any-return]
        except grpc.RpcError as failure:
            raise from_rpc_error(failure) from None
