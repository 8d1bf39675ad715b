"""Shared memory past the client: the protocol that tensor.proto describes at SharedMemory, spoken by a test."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import secrets
import socket
from typing import Any

import grpc
import numpy as np
import pytest

from convserve.v1.convolution_service_pb2 import GetServerInfoRequest
from convserve.v1.tensor_pb2 import SharedMemory, Tensor
from tests.support.raw.calls import RawCaller, checked, convolve_request, layer, weights

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


X = np.arange(16, dtype="<f4").reshape(1, 4, 4, 1)


def memory(size: int, seals: int = SEALS, flags: int = 0) -> int:
    """Returns the descriptor of new memory."""
    descriptor = os.memfd_create("convserve-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Sharer:
    """A connection over which regions are handed over."""

    def __init__(self, address: str, ticket: bytes) -> None:
        """Connects and shows the ticket; whether it is taken, the first `send` sees."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(address)  # which with a timeout would not wait while others fill the queue
        self.socket.settimeout(30)
        self.socket.send(ticket)
        self._is_admitted = False

    @classmethod
    def of(cls, caller: RawCaller) -> Sharer:
        """Connects to the server of a caller, at the address that it tells."""
        info = caller.stub.GetServerInfo(GetServerInfoRequest(), timeout=60).server_info
        return cls(f"\0{info.shared_memory_address}", info.shared_memory_ticket)

    def __enter__(self) -> Sharer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, packet: bytes, *descriptors: int) -> bytes:
        """Sends a packet, closes the descriptors, and returns the answer: nothing if the connection is ended."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            if not self._is_admitted and self.socket.recv(100) != b"\1":
                return b""
            self._is_admitted = True
            self.socket.sendmsg([packet], rights)
            return self.socket.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            return b""
        finally:
            for each in descriptors:
                os.close(each)

    def share(self, size: int = 4096, name: bytes | None = None) -> Region:
        """Hands over a good region."""
        found = Region(name or secrets.token_bytes(16), size)
        assert self.send(found.name, memory_of(found)) == b"\1"
        return found


class Region:
    """A region, and this process' map of it."""

    def __init__(self, name: bytes, size: int) -> None:
        self.name = name
        self.descriptor = memory(size)
        self.map = mmap.mmap(self.descriptor, size)

    def place(self, offset: int = 0) -> SharedMemory:
        return SharedMemory(region=self.name, offset_bytes=offset)


def memory_of(region: Region) -> int:
    return os.dup(region.descriptor)


def place(name: bytes, offset: int = 0) -> SharedMemory:
    """Returns a place in whatever region has that name."""
    return SharedMemory(region=name, offset_bytes=offset)


def shared_request(inside: Any, outside: Any = None, shape: Any = (1, 4, 4, 1), **changes: Any) -> Any:
    """Returns the request of a layer that doubles what lies in shared memory."""
    doubling = layer(weights=weights(np.full((1, 1, 1, 1), 2.0)))
    x = Tensor(dtype=1, shape=shape, shared_memory=inside)
    return convolve_request(doubling, **{"input": x, "output_memory": outside} | changes)


def check_sharing(caller: RawCaller, sharer: Sharer) -> None:
    """Asserts that an honest caller's memory is taken and computed with."""
    region = sharer.share()
    region.map[:64] = X.tobytes()
    answer = caller.stub.Convolve(shared_request(region.place(), region.place(1024)), timeout=60)
    assert (answer.output.data, answer.output.shared_memory) == (b"", region.place(1024))
    assert region.map[1024:1088] == (2 * X).tobytes()
    assert sharer.send(region.name) == b"\1"


def refused(caller: RawCaller, request: Any, code: grpc.StatusCode, reason: str) -> tuple[str, dict[str, str]]:
    """Asserts that a call is refused; returns its text, and descriptions by field."""
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub.Convolve(request, timeout=60)
    return checked(caught.value, code, reason)
