"""Who a call is from, and what it may do. Fairness between callers, and logs, go by the caller's name."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

READ, COMPUTE, CHANGE = "read", "compute", "change"
PERMISSIONS = (READ, COMPUTE, CHANGE)
"""What a token may allow: to look at the server and its layers, to compute, to change which layers are stored."""
ALL = frozenset(PERMISSIONS)
_SO_PEERPIDFD = 77  # Linux'; Python has no name for it
TOKEN, CERTIFICATE = "token", "certificate"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller."""

    name: str  # of its token or certificate; without one its host, or on this machine its connection
    permissions: frozenset[str]  # what it may do, out of PERMISSIONS
    proof: str = TOKEN  # or CERTIFICATE; empty for a caller that showed neither

    @property
    def caller(self) -> str:
        """What the calls of one caller have in common: "token:NAME", "certificate:NAME", or an address."""
        return f"{self.proof}:{self.name}" if self.proof else self.name

    @property
    def is_one_caller(self) -> bool:
        """Whether no other caller has the same name: all of a Unix socket do, unless they show tokens."""
        return bool(self.proof) or not self.name.startswith("unix:")


def anyone(peer: str, permissions: frozenset[str] = ALL) -> Identity:
    """Returns the identity of a caller that showed nothing, from where it is, as gRPC names it."""
    return Identity(peer if is_local(peer) else peer.rpartition(":")[0], permissions, "")


def certificate_name(auth_context: Mapping[str, object]) -> str:
    """Returns the common name of a certificate that gRPC has verified, or its first alternative name; "" for none.

    It is printable, as it goes into the log.
    """
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        names = auth_context.get(key)
        if isinstance(names, list | tuple) and names and names[0]:
            name = bytes(names[0]).decode(errors="replace")
            return name if name.isprintable() else ascii(name)
    return ""


def is_local(peer: str) -> bool:
    """Returns whether a peer, as gRPC names it, is on this machine."""
    return peer.startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))


def peer_process(connection: socket.socket) -> str:
    """Returns what tells the process that made a Unix socket's connection from all others of this machine."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"process {pid}" if pid else other_container(connection, uid)  # of another container no number is known


def other_container(connection: socket.socket, uid: int) -> str:
    """Returns the same of another container's process: as good as Linux knows it, since 6.9; or else its user."""
    with suppress(OSError):  # an older Linux, or the process has ended
        (descriptor,) = struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))
        try:
            return f"process {os.fstat(descriptor).st_ino} of another container"
        finally:
            os.close(descriptor)
    return f"user {uid} of another container"
