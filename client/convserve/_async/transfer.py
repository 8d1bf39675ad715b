"""How a client's tensors travel: in one message, in pieces, or through shared memory."""

from __future__ import annotations

from typing import Any

from convserve._async import io
from convserve._rpc import requests, shared_memory, streaming
from convserve._rpc.retries import Deadline
from convserve.protocol.results import Result
from convserve.tensors.codec import Array, Shape
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc


class TensorPath:
    """The calls that carry tensors, each by the way that suits its size and where the server is."""

    def __init__(self, channel: Any, target: str, shares_memory: bool) -> None:
        """Prepares for a channel to a target of gRPC's."""
        self._convolve = channel.unary_unary(**requests.CONVOLVE)
        self._convolve_stream = channel.stream_stream(**requests.CONVOLVE_STREAM)
        self._convolve_shared = channel.unary_unary(**shared_memory.CONVOLVE)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(channel)  # type: ignore[no-untyped-call]
        self._sharing = shared_memory.Sharing(target, shares_memory)

    async def convolve(self, request: requests.ConvolveRequest, deadline: Deadline) -> Result:
        """Makes a forward pass' call.

        Raises:
            grpc.RpcError: If it fails.
            ConvserveError: If an item of a stream did.
        """
        if shared_memory.is_worth_sharing(request):
            if self._sharing.is_to_connect():
                await self.connect(None, deadline)
            if self.shares_memory:
                # In a thread, for copying a large input takes longer than an event loop should be held up.
                shared = await io.in_thread(self._sharing.allocate, request, deadline)
                if shared is not None:
                    with shared:
                        return shared.result(await io.answer(self._convolve_shared, shared.message, deadline))
        if request.is_large:
            outgoing = streaming.Outgoing(request)
            return await io.stream(self._convolve_stream, outgoing, streaming.Incoming(outgoing, request), deadline)
        return request.result(await io.answer(self._convolve, request, deadline))

    def is_to_connect(self) -> bool:
        """Returns whether the caller is to `connect` now."""
        return self._sharing.is_to_connect()

    async def connect(self, _: None, deadline: Deadline) -> None:
        """Shares memory with the server, if it shares any.

        Raises:
            grpc.RpcError: If the server does not say how.
        """
        with self._sharing.asking():
            request = convolution_service_pb2.GetServerInfoRequest()
            answer = await io.answer(self._stub.GetServerInfo, request, deadline)
            await io.in_thread(self._sharing.connect, answer.server_info, deadline)

    async def empty(self, shape: Shape, dtype: Any, deadline: Deadline) -> Array:
        """Returns an uninitialized array, in shared memory if there is any."""
        return await io.in_thread(self._sharing.empty, shape, dtype, deadline)

    @property
    def shares_memory(self) -> bool:
        """Whether calls share memory with the server at this moment."""
        return self._sharing.memory() is not None

    def close(self) -> None:
        """Ends the sharing of memory."""
        self._sharing.close()
