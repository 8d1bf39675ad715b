"""Regions of memory that convserve's clients on this machine share with the server.

The protocol is written at SharedMemory in proto/convserve/v1/tensor.proto. A client registers a region by passing its
descriptor, whose size is sealed so that it stays mapped; the region is unmapped when the client's connection ends. The
server makes none, so it leaves none behind.

All processes of a machine see the socket. So a connection begins with a ticket that only GetServerInfo gives, and
callers who may not ask for it can take neither room nor connections from those who may. A process may have half of the
connections that are left, and of the memory.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import mmap
import os
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from convserve.errors import InvalidTensorError, OverloadedError, SharedMemoryLostError
from convserve.tensors.aligned import ALIGNMENT
from convserve.tensors.codec import Array
from convserve.tensors.mapped_memory import Map
from convserve.tensors.shared_memory import NAME_BYTES, SUFFIX, TICKET_BYTES
from convserve.v1 import tensor_pb2
from convserve_server.auth.identity import peer_process
from convserve_server.memory.regions import RegionTable, is_within
from convserve_server.memory.shares import Shares

log = logging.getLogger("convserve")

MAX_CONNECTIONS = 1000
_PAUSE_S, _WARN_EVERY_S = 0.1, 60.0
_MAX_REGIONS = 10_000  # Linux maps at most 65,530 pieces into a process
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@dataclass
class _Peer:
    """Whoever is at the other end of a connection."""

    process: str
    has_ticket: bool = False
    names: set[bytes] = field(default_factory=set)  # of its regions


class SharedMemory:
    """Registers regions in a thread of its own, and returns arrays on them.

    It listens on a socket in the abstract namespace. All regions together have at most so many bytes.
    """

    def __init__(self, most_bytes: int, most_connections: int = MAX_CONNECTIONS) -> None:
        self.address = f"convserve-{secrets.token_hex(16)}"
        self.ticket = secrets.token_bytes(TICKET_BYTES)
        self._connections, self._warns_from = Shares(most_connections), 0.0
        self._regions: RegionTable[bytes, Map] = RegionTable(most_bytes, _MAX_REGIONS)
        self._peers: dict[socket.socket, _Peer] = {}  # in the order in which they came
        self._selector = selectors.DefaultSelector()
        self._paths: list[str] = []
        self._listen("\0" + self.address)
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, "stop")
        self._thread = threading.Thread(target=self._serve, name="shared-memory", daemon=True)
        self._thread.start()

    def listen_beside(self, unix_path: str) -> None:
        """Registers regions beside a Unix socket too, for callers with a network namespace of their own."""
        path = unix_path + SUFFIX
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                if probe.connect_ex(path) != 0:  # what a killed server left behind
                    Path(path).unlink(missing_ok=True)
            self._listen(path)
        except OSError as error:  # such as a path that is too long
            log.warning("%s: no memory is shared beside this socket: %s", path, error)
        else:
            self._paths.append(path)

    def array(self, place: tensor_pb2.SharedMemory, size: int | None, field: str) -> Array:
        """Returns `size` bytes of a region, or all that are left of it, as an array that may be written to.

        `field` is what errors call it. Raises SharedMemoryLostError if no such region is known, or
        InvalidTensorError if the bytes are not within it.
        """
        region = self._regions.get(place.region)
        if region is None:
            raise SharedMemoryLostError("Expected a region of shared memory that was handed over. Received another.")
        begin = place.offset_bytes
        if size is None:
            size = max(0, region.size - begin)
        if begin % ALIGNMENT or not is_within(region, begin, size):
            expected = f"{size} bytes within a region of {region.size}, from a multiple of {ALIGNMENT}"
            raise InvalidTensorError.for_field(field, expected, f"offset_bytes={begin}")
        return region.array()[begin : begin + size]

    def close(self) -> None:
        """Ends the thread, and unregisters all regions."""
        self._wake.send(b"\0")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._wake.close()
        self._regions.unregister(self._regions.all())
        for path in self._paths:
            Path(path).unlink(missing_ok=True)

    def _listen(self, address: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(address)
        listener.listen()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, "listen")

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)  # noqa: S101 (nothing else is registered)
                if key.data == "stop":
                    return
                try:
                    self._accept(source) if key.data == "listen" else self._answer(source)
                except OSError as error:
                    log.debug("shared memory: %s", error)
                    if key.data == "listen":
                        time.sleep(_PAUSE_S)  # without a free descriptor the selector returns the same caller at once
                    else:
                        self._end(source)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        process, shares = peer_process(connection), self._connections
        if not shares.fits(process):
            strangers = ((each, peer) for each, peer in self._peers.items() if not peer.has_ticket)
            stranger = next((each for each, peer in strangers if not shares.left or peer.process == process), None)
            if stranger is None:
                if time.monotonic() >= self._warns_from:
                    self._warns_from = time.monotonic() + _WARN_EVERY_S
                    text = "shared memory: %s has %d connections, and gets none of %d left"
                    log.warning(text, process, shares.own[process], shares.left)
                connection.close()
                return
            self._end(stranger)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, "answer")
        self._peers[connection] = _Peer(process)
        shares.take(process)

    def _answer(self, connection: socket.socket) -> None:
        peer = self._peers.get(connection)
        if peer is None:
            return  # `_accept` ended it to make room, after the selector had returned it
        name, descriptors, flags, _ = socket.recv_fds(connection, TICKET_BYTES + 1, 1)
        try:
            if not name:
                self._end(connection)
            elif not peer.has_ticket:
                if not hmac.compare_digest(name, self.ticket):
                    raise OSError("not the ticket")
                peer.has_ticket = True
                connection.send(b"\1")
            elif len(name) != NAME_BYTES or flags & socket.MSG_CTRUNC:
                raise OSError("not a region's name and at most one descriptor")
            elif descriptors:
                connection.send(b"\1" if self._register(peer, name, descriptors[0]) else b"\0")
            else:
                if name in peer.names:
                    peer.names.remove(name)
                    self._regions.unregister([name])
                connection.send(b"\1")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _register(self, peer: _Peer, name: bytes, descriptor: int) -> bool:
        try:
            is_sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            # Huge pages may be missing when they are touched, which would end this process.
            if not is_sealed or os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
                return False
            region = Map(descriptor, os.fstat(descriptor).st_size, mmap.MAP_SHARED)
            self._regions.register(name, region, peer.process)
        except (OSError, KeyError, OverloadedError):  # OSError: not of this kind, empty, sealed against writing
            return False
        peer.names.add(name)
        return True

    def _end(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        peer = self._peers.pop(connection)
        self._regions.unregister(peer.names)
        self._connections.give_back(peer.process)
        connection.close()
