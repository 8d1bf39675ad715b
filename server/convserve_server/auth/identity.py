"""Who a call is from, and what it may do. Fairness between callers, and logs, go by the caller's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from convserve_server.scheduling.caller import Caller

READ, COMPUTE, CHANGE = "read", "compute", "change"
PERMISSIONS = (READ, COMPUTE, CHANGE)
"""What a token may allow: to look at the server and its layers, to compute, to change which layers are stored."""


class CallContext(Protocol):
    """What services and interceptors ask a call: those methods of grpc.ServicerContext that each kind of call has."""

    def peer(self) -> str:
        """Returns where the caller is, as gRPC names it."""

    def auth_context(self) -> Mapping[str, object]:
        """Returns what the connection says of who the caller is."""

    def is_active(self) -> bool:
        """Returns whether the caller waits for the answer."""

    def time_remaining(self) -> float:
        """Returns the seconds until the deadline."""

    def cancel(self) -> object:
        """Ends the call."""

    def add_callback(self, callback: Callable[[], None], /) -> bool:
        """Has a function called once the call is over. Returns False if it is."""

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...], /) -> None:
        """Sets what goes with the answer."""


@dataclass(frozen=True)
class Identity:
    """A caller who showed a token.

    Attributes:
        name: The token's name.
        permissions: What it allows, out of PERMISSIONS.
    """

    name: str
    permissions: frozenset[str]


# Each call has a context of its own, or copies of it, in which interceptors, gates and then the method run.
_authenticated: ContextVar[Identity] = ContextVar("authenticated")
_by_certificate: ContextVar[bool] = ContextVar("by_certificate", default=False)


def authenticate(caller: Identity) -> None:
    """Makes known who the call under way is from; for an interceptor."""
    _authenticated.set(caller)


def name_by_certificate() -> None:
    """Lets the call under way be known by the certificate that its caller showed; for an interceptor."""
    _by_certificate.set(True)


def may(permission: str) -> bool:
    """Returns whether the call under way has a permission; where no tokens are asked for, every call has all."""
    caller = _authenticated.get(None)
    return caller is None or permission in caller.permissions


def caller_of(context: CallContext) -> str:
    """Returns what the calls of one caller have in common.

    That is "token:NAME" or "certificate:NAME" where it showed one, else its host, or on this machine its connection.
    """
    caller = _authenticated.get(None)
    if caller is not None:
        return f"token:{caller.name}"
    peer = context.peer()
    if _by_certificate.get() and (name := _certificate_name(context.auth_context())):
        return f"certificate:{name}"
    return peer if is_local(peer) else peer.rpartition(":")[0]


def caller_from_context(context: CallContext) -> Caller:
    """Returns a call's caller, as the request path sees it."""

    def add_done_callback(call: Callable[[], None]) -> bool:
        return bool(context.add_callback(call))

    name = caller_of(context)
    return Caller(name, is_identified(name), context.is_active, context.time_remaining, add_done_callback)


def is_identified(name: str) -> bool:
    """Returns whether a caller's name is one caller's: all of a Unix socket have the same, unless they show tokens."""
    return not name.startswith("unix:")


def _certificate_name(shown: Mapping[str, object]) -> str:
    """Returns the common name of a certificate that gRPC has verified, or its first alternative name; "" for none.

    It is printable, as it goes into the log.
    """
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        names = shown.get(key)
        if isinstance(names, list | tuple) and names and names[0]:
            name = bytes(names[0]).decode(errors="replace")
            return name if name.isprintable() else ascii(name)
    return ""


def is_local(peer: str) -> bool:
    """Returns whether a peer, as gRPC names it, is on this machine."""
    return peer.startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))
