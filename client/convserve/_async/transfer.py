"""By which way the tensors of an asyncio client travel: in one message, in pieces, or through shared memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np

from convserve._rpc import requests, retries, shared_memory, streaming
from convserve._rpc.shared_memory import Sharing
from convserve.protocol import pieces
from convserve.protocol.results import Result
from convserve.tensors.codec import Array, Shape
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc


class TensorPath:
    """The calls that carry tensors, each made by the way that suits its size and where the server is."""

    def __init__(self, channel: grpc.aio.Channel, target: str, shares_memory: bool) -> None:
        """Prepares for a channel to a target of gRPC's."""
        self._convolve = channel.unary_unary(**requests.CONVOLVE)
        self._convolve_stream = channel.stream_stream(**requests.CONVOLVE_STREAM)
        self._convolve_shared = channel.unary_unary(**shared_memory.CONVOLVE)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(channel)  # type: ignore[no-untyped-call]
        self._sharing = Sharing(target, shares_memory)

    async def convolve(self, request: requests.ConvolveRequest, timeout: float) -> Result:
        """Makes a forward pass' call.

        Raises:
            grpc.RpcError: If it fails.
            ConvserveError: If an item of a stream did.
        """
        deadline = retries.Deadline(timeout)
        if shared_memory.is_worth_sharing(request):
            await self.connect(None, timeout)
            # In a thread, for copying a large input takes longer than an event loop should be held up.
            shared = await asyncio.to_thread(self._sharing.placed, request)
            if shared is not None:
                with shared:
                    return shared.result(await self._convolve_shared(shared.message, timeout=deadline.remaining_s()))
        if request.is_large:
            return await self._streamed(request, deadline.remaining_s())
        return await self._convolve(request, timeout=deadline.remaining_s())  # type: ignore[no-any-return]

    async def _streamed(self, request: requests.ConvolveRequest, timeout: float) -> Result:
        outgoing = streaming.Outgoing(request)
        incoming = streaming.Incoming(outgoing, request)
        call = self._convolve_stream(timeout=timeout)
        sending = asyncio.create_task(self._send(call, outgoing))
        try:
            message: Any
            while (message := await call.read()) is not grpc.aio.EOF:
                incoming.take(message)
            return incoming.result()
        finally:
            sending.cancel()
            call.cancel()  # for when an item failed; after the end it does nothing

    async def _send(self, call: Any, outgoing: streaming.Outgoing) -> None:
        # Where the server ends the call before all is sent, sending fails, and reading says why.
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
            await call.write(outgoing.start())
            if pieces.is_accepted(await call.initial_metadata()):
                for piece in outgoing.pieces():
                    await call.write(piece)
                await call.done_writing()

    async def connect(self, _: None, timeout: float) -> None:
        """Shares memory with the server, if that is to be tried now.

        Raises:
            grpc.RpcError: If the server does not say how.
        """
        if self._sharing.is_to_connect():
            request = convolution_service_pb2.GetServerInfoRequest()
            with self._sharing.asking():
                answer = await self._stub.GetServerInfo(request, timeout=timeout)
                self._sharing.connect(answer.server_info)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """Returns an uninitialized array, in shared memory if there is any."""
        memory = self._sharing.memory()
        if memory is not None:
            with suppress(OSError):
                return memory.empty(shape, dtype)
        return np.empty(shape, dtype)

    def close(self) -> None:
        """Ends the sharing of memory."""
        self._sharing.close()
