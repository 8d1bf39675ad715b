"""By which way the tensors of a blocking client travel: in one message, in pieces, or through shared memory."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np

from convserve._rpc import requests, retries, shared_memory, streaming
from convserve._rpc.shared_memory import Sharing
from convserve._sync.cancellation import Calls
from convserve.protocol import pieces
from convserve.protocol.results import Result
from convserve.tensors.codec import Array, Shape
from convserve.v1 import convolution_service_pb2, convolution_service_pb2_grpc


class TensorPath:
    """The calls that carry tensors, each made by the way that suits its size and where the server is."""

    def __init__(self, channel: grpc.Channel, target: str, shares_memory: bool) -> None:
        """Prepares for a channel to a target of gRPC's."""
        self._convolve = channel.unary_unary(**requests.CONVOLVE)
        self._convolve_stream = channel.stream_stream(**requests.CONVOLVE_STREAM)
        self._convolve_shared = channel.unary_unary(**shared_memory.CONVOLVE)
        self._stub = convolution_service_pb2_grpc.ConvolutionServiceStub(channel)  # type: ignore[no-untyped-call]
        self._sharing = Sharing(target, shares_memory)

    def convolve(self, request: requests.ConvolveRequest, timeout: float, calls: Calls | None = None) -> Result:
        """Makes a forward pass' call.

        Args:
            request: What is sent.
            timeout: Seconds.
            calls: Among which the call can be ended, if it is to be.

        Raises:
            grpc.RpcError: If it fails.
            ConvserveError: If an item of a stream did.
            grpc.FutureCancelledError: If it was ended.
        """
        deadline = retries.Deadline(timeout)
        if shared_memory.is_worth_sharing(request):
            self.connect(None, timeout, calls)
            shared = self._sharing.placed(request)
            if shared is not None:
                with shared:
                    return shared.result(_answer(self._convolve_shared, shared.message, deadline, calls))
        if request.is_large:
            return self._streamed(request, deadline.remaining_s(), calls or Calls())
        return _answer(self._convolve, request, deadline, calls)  # type: ignore[no-any-return]

    def _streamed(self, request: requests.ConvolveRequest, timeout: float, calls: Calls) -> Result:
        outgoing = streaming.Outgoing(request)
        incoming = streaming.Incoming(outgoing, request)
        accepted: concurrent.futures.Future[bool] = concurrent.futures.Future()

        def messages() -> Iterator[bytes]:
            yield outgoing.start()
            if accepted.result():
                yield from outgoing.pieces()

        call = self._convolve_stream(messages(), timeout=timeout)
        try:
            with calls.under_way(call):
                accepted.set_result(pieces.is_accepted(call.initial_metadata()))
                for message in call:
                    incoming.take(message)
                return incoming.result()
        finally:
            accepted.cancel()
            call.cancel()  # for when an item failed; after the end it does nothing

    def connect(self, _: None, timeout: float, calls: Calls | None = None) -> None:
        """Shares memory with the server, if that is to be tried now.

        Raises:
            grpc.RpcError: If the server does not say how.
        """
        if self._sharing.is_to_connect():
            request = convolution_service_pb2.GetServerInfoRequest()
            with self._sharing.asking():
                answer = _answer(self._stub.GetServerInfo, request, retries.Deadline(timeout), calls)
                self._sharing.connect(answer.server_info)

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """Returns an uninitialized array, in shared memory if there is any."""
        memory = self._sharing.memory()
        if memory is not None:
            with suppress(OSError):
                return memory.empty(shape, dtype)
        return np.empty(shape, dtype)

    @property
    def shares_memory(self) -> bool:
        """Whether calls share memory with the server at this moment."""
        return self._sharing.memory() is not None

    def close(self) -> None:
        """Ends the sharing of memory."""
        self._sharing.close()


def _answer(method: Callable[..., Any], message: Any, deadline: retries.Deadline, calls: Calls | None) -> Any:
    if calls is None:  # the quicker way, but nobody can end it
        return method(message, timeout=deadline.remaining_s())
    return calls.answer(method, message, deadline.remaining_s())
