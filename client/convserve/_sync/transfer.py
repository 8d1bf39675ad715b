# Generated from convserve/_async/transfer.py by client/unasync.py (make sync): change that one.
"""How a client's tensors travel: in one message, in pieces, or through shared memory."""

from __future__ import annotations

from typing import Any

from convserve._rpc import shared_memory, streaming
from convserve._rpc.requests import ConvolveRequest
from convserve._rpc.retries import Deadline
from convserve._sync import io
from convserve.errors import ConvserveError
from convserve.protocol.results import Result
from convserve.protocol.status import from_rpc_error
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc


class TensorPath:
    """The calls that carry tensors, each by the way that suits its size and where the server is."""

    def __init__(self, channel: Any, target: str, shares_memory: bool) -> None:
        # Without serializers: what is sent and received is bytes.
        self._convolve = channel.unary_unary("/convserve.v1.ConvolutionService/Convolve")
        self._convolve_stream = channel.stream_stream("/convserve.v1.ConvolutionService/ConvolveStream")
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(channel)  # type: ignore[no-untyped-call]
        self.sharing = shared_memory.Sharing(target, shares_memory)

    def convolve(self, request: ConvolveRequest, deadline: Deadline) -> Result:
        """Makes a forward pass' call; what is too large for the server goes again in pieces, or in smaller items.

        Raises:
            grpc.RpcError: If it fails.
            ConvserveError: If an item of a stream did, or the division of the batch is refused for something else.
        """
        while True:
            try:
                result = self._by_size(request, deadline)
                request.remember_division()
                return result
            except (io.RpcError, ConvserveError) as failure:
                if not request.reduce(from_rpc_error(failure)):
                    raise

    def _by_size(self, request: ConvolveRequest, deadline: Deadline) -> Result:
        if shared_memory.is_worth_sharing(request) and not request.is_divided:
            if self.sharing.is_to_connect():
                self.connect(None, deadline)
            if self.sharing.memory() is not None:
                # In a thread, for copying a large input takes longer than an event loop should be held up.
                shared = io.in_thread(self.sharing.allocate, request, deadline)
                if shared is not None:
                    with shared:
                        data = io.answer(self._convolve, shared.data, deadline)
                        return io.completed(shared.result, data) if shared.is_copied_out else shared.result(data)
        if request.is_large:
            return io.stream(self._convolve_stream, streaming.Stream(request), deadline)
        return request.result(io.answer(self._convolve, request.serialize(), deadline))

    def connect(self, _: None, deadline: Deadline) -> None:
        """Shares memory with the server, if it shares any; raises grpc.RpcError if the server does not say how."""
        with self.sharing.asking():
            request = convolution_service_pb2.GetServerInfoRequest()
            answer = io.answer(self._stub.GetServerInfo, request, deadline)
            io.in_thread(self.sharing.connect, answer.server_info, deadline)
