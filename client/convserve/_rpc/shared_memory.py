"""Whether a client shares memory with its server, and a forward pass whose tensors are there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from convserve._rpc import channel
from convserve._rpc.requests import ConvolveRequest
from convserve._rpc.retries import Deadline
from convserve.errors import SharedMemoryLostError
from convserve.protocol.results import Result, check_answer, check_size, copied, reading_answers
from convserve.tensors.codec import Array, Shape, head_of, numpy_dtype
from convserve.tensors.shared_memory import MAX_ANSWER_S, SUFFIX, Region, SharedMemory
from convserve.v1 import convolution_service_pb2 as messages
from convserve.v1 import server_info_pb2

log = logging.getLogger("convserve")

_MIN_SHARED_BYTES = 2**18  # of input and output together: below it a message is as quick
_MIN_KEPT_BYTES = 2**20  # of an output: below it a copy is as quick as a map
_ANSWERS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_RETRY_S = 60.0  # to the next attempt after one that failed


class Sharing:
    """The memory that a client shares with a target of gRPC's, made at the first call that is worth it."""

    def __init__(self, target: str, is_wanted: bool) -> None:
        self._target = target
        self._memory: SharedMemory | None = None
        self._lock = threading.Lock()
        self._closed = False
        is_one = len(channel.addresses(target)) == 1
        self._ask_at = 0.0 if is_wanted and is_one and channel.is_local(target) else float("inf")

    def memory(self) -> SharedMemory | None:
        """Returns the shared memory if there is one now."""
        memory = self._memory
        if memory is not None and memory.lost:
            memory.close()
            if memory.used:
                self._ask_at = 0.0  # the server may have started again
            if self._memory is memory:
                self._memory = None
            return None
        return memory

    def is_to_connect(self) -> bool:
        """Returns whether the caller is to ask the server for its socket now, and then to `connect`."""
        with self._lock:
            if self.memory() is not None or time.monotonic() < self._ask_at:
                return False
            self._ask_at = time.monotonic() + _RETRY_S
            return True

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Lets the next call ask again if the block, which asks, fails, unless the token does not allow to ask."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.PERMISSION_DENIED:
                _log_refusal("the token does not allow to ask for it")
                return
            self._ask_at = 0.0
            raise

    def connect(self, server: server_info_pb2.ServerInfo, deadline: Deadline) -> None:
        """Shares memory over the socket that a server names."""
        addresses = ["\0" + server.shared_memory_address]
        if self._target.startswith("unix:"):
            addresses.insert(0, self._target.removeprefix("unix:").removeprefix("//") + SUFFIX)
        try:
            if not server.shared_memory_address:
                raise OSError("the server shares no memory")
            self._memory = SharedMemory(addresses, server.shared_memory_ticket, _wait_s(deadline))
        except OSError as error:
            _log_refusal(str(error))
        if self._closed:
            self.close()

    def allocate(self, request: ConvolveRequest, deadline: Deadline) -> SharedRequest | None:
        """Returns a request with its tensors in shared memory; None if there is none for them."""
        memory = self.memory()
        if memory is None:
            return None
        try:
            return SharedRequest(memory, request, _wait_s(deadline))
        except OSError as error:
            if memory.lost or not isinstance(error, TimeoutError):  # else this call has little time
                _log_refusal(str(error))
            return None

    def empty(self, shape: Shape, dtype: Any, deadline: Deadline) -> Array:
        """Returns an uninitialized array, in shared memory if there is any."""
        memory = self.memory()
        if memory is not None:
            with suppress(OSError):
                return memory.empty(shape, dtype, _wait_s(deadline))
        return np.empty(shape, dtype)

    def close(self) -> None:
        """Ends the sharing."""
        self._closed = True
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _wait_s(deadline: Deadline) -> float:
    """Returns how long the server may take to answer on its socket; the other half of the time is the call's."""
    return min(MAX_ANSWER_S, deadline.remaining_s() / 2)


def _log_refusal(why: str) -> None:
    log.debug("tensors go through the connection, not through shared memory: %s", why)


def is_worth_sharing(request: ConvolveRequest) -> bool:
    """Returns whether a request moves enough bytes."""
    return request.input.nbytes + request.plan.output_bytes >= _MIN_SHARED_BYTES


class SharedRequest:
    """A request whose input lies in shared memory, and whose output will; a context in which its call is made."""

    def __init__(self, memory: SharedMemory, request: ConvolveRequest, timeout: float) -> None:
        """Copies the input there, unless it is there, and finds a place for the output: where `out` is, or another.

        Raises OSError if it finds no memory within `timeout` seconds.
        """
        self._memory = memory
        self._plan, self._out = request.plan, request.out
        self._regions: list[Region] = []
        place = memory.place_of(request.input)
        if place is None:
            region = memory.region(request.input.nbytes, timeout)
            self._regions.append(region)
            region.shared()[: request.input.nbytes] = request.input.reshape(-1).view(np.uint8)
            place = region.place()
        output_place = None if request.out is None else memory.place_of(request.out)
        self._output: Region | None = None  # in which the output comes, unless it comes in `out`
        if output_place is None:
            try:
                self._output = memory.region(request.plan.output_bytes, timeout)
            except OSError:
                self._give_back()
                raise
            self._regions.append(self._output)
            output_place = self._output.place()
        self._place = output_place
        message = messages.ConvolveRequest()
        message.CopyFrom(request.message)
        message.input.CopyFrom(head_of(request.input))
        message.input.shared_memory.CopyFrom(place)
        message.output_memory.CopyFrom(self._place)
        self.data = message.SerializeToString()

    @property
    def is_copied_out(self) -> bool:
        """Whether taking the result is to copy a large output."""
        return self._out is not None and self._output is not None and self._plan.output_bytes >= _MIN_KEPT_BYTES

    @reading_answers
    def result(self, data: bytes) -> Result:
        """Returns what the answer's bytes say; raises InternalError if they answer another call, or none."""
        plan = self._plan
        check_size(len(data), plan, plan.output_bytes)
        message = messages.ConvolveResponse.FromString(data)
        head = message.output
        if not head.HasField("shared_memory"):
            output = Result.parse(data, plan, self._out).output
        else:
            shape, dtype = plan.output_shape, numpy_dtype(plan.output_dtype)
            check_answer(message, plan, tuple(head.shape), head.dtype)
            if head.shared_memory != self._place:
                raise DecodeError("an output in another place than was asked for")
            if self._output is None:
                if self._memory.place_of(self._out) != self._place:
                    raise SharedMemoryLostError(
                        "Expected an output in shared memory. Received one in memory of before."
                    )
                output = self._out
            elif self._out is not None or plan.output_bytes < _MIN_KEPT_BYTES:
                output = copied(np.ndarray(shape, dtype, self._output.shared()), self._out)
            else:
                output = self._memory.result(self._output, shape, dtype)
                self._regions.remove(self._output)
        self._give_back()
        return Result.from_message(message, output)

    def _give_back(self) -> None:
        """Lets further calls use the regions that hold nothing any more."""
        while self._regions:
            self._memory.give_back(self._regions.pop())

    def __enter__(self) -> Self:
        """Returns the request."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Without an answer, drops all regions: the server may still be at work on them, or not know them."""
        if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.UNAVAILABLE:
            self._memory.close()
        for region in self._regions:
            self._memory.discard(region)
        if self._output is None and error is not None and not _is_answer(error):
            self._memory.withdraw(self._out)


def _is_answer(error: BaseException) -> bool:
    """Returns whether a server that is done with a call has said so."""
    return isinstance(error, grpc.RpcError) and error.code() in _ANSWERS
