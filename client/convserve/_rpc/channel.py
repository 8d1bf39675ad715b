"""Which channel both clients open: gRPC's name of the target, its addresses, and the channel's options."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from convserve._version import __version__
from convserve.errors import InvalidRequestError, short_repr
from convserve.protocol.pieces import LARGE_FRAMES

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 2**24
"""Of a message that a server sends: more than any of an honest one's."""
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:", "vsock:")  # of gRPC's targets


def channel_target(target: str | Sequence[str]) -> str:
    """Returns gRPC's name of one or several addresses.

    These are "host:port", "unix:///path", any other gRPC target with its scheme, or several "ip:port" as a list or
    separated by commas.

    Raises InvalidRequestError for an empty target, or several of which one is not an IP address.
    """
    listed = [part.strip() for part in target.split(",")] if isinstance(target, str) else list(target)
    if not listed or not all(isinstance(address, str) and address for address in listed):
        expected = "'host:port', 'unix:///path', or several 'ip:port'"
    elif len(listed) == 1:
        host, _, port = listed[0].rpartition(":")
        if host and port and "]" not in port:
            # With dns:/// every address of a name is used, not only the first that answers.
            return listed[0] if listed[0].startswith(_SCHEMES) else f"dns:///{listed[0]}"
        expected = "'host:port'"
    else:
        listed = [address.replace("localhost:", "127.0.0.1:") for address in listed]
        ips = [_ip(address.rpartition(":")[0]) for address in listed]
        versions = {ip and ip.version for ip in ips}
        if len(versions) == 1 and None not in versions:
            return f"ipv{versions.pop()}:{','.join(listed)}"
        expected = (
            "several addresses to be IP addresses of one version with a port; for host names give one DNS name that "
            "resolves to all of them"
        )
    raise InvalidRequestError.for_field("target", expected, short_repr(target))


def addresses(target: str) -> tuple[str, ...]:
    """Returns gRPC's name of each server that a target of gRPC's lists, or of the target itself if it is one."""
    scheme, _, listed = target.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return (target,)
    return tuple(f"{scheme}:{address}" for address in listed.split(","))


def name_to_resolve(target: str) -> tuple[str, str] | None:
    """Returns host and port of a target of gRPC's that may lead to several servers, or None."""
    scheme, _, address = target.partition(":")
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if scheme != "dns" or not host or host == "localhost" or _ip(host):
        return None
    return host, port


def look_up(host: str, port: str) -> concurrent.futures.Future[tuple[str, ...]]:
    """Returns a future of gRPC's names of the addresses that a host name leads to, in an order that all callers see.

    There are none if the resolver does not know the host: gRPC may know more of the name, or will say what is wrong.
    The resolver has no time limit of its own, so that it works in a thread that nobody waits for longer than they may.
    """
    future: concurrent.futures.Future[tuple[str, ...]] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # so that no caller that gives up can cancel it

    def resolve() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            infos = []
        future.set_result(resolved(infos))

    threading.Thread(target=resolve, name="convserve-resolve", daemon=True).start()
    return future


def resolved(infos: Iterable[tuple[Any, ...]]) -> tuple[str, ...]:
    """Returns gRPC's names of what `socket.getaddrinfo` returned, in an order that is the same for everybody."""
    names = {f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}" for *_, (host, port, *_) in infos}
    return tuple(sorted(names))


def is_local(target: str) -> bool:
    """Returns whether nothing that is sent to a target of gRPC's leaves this machine."""
    if target.startswith("unix"):
        return True
    if not target.startswith(("dns:", "ipv4:", "ipv6:")):  # others lead where their resolver says
        return False
    hosts = [address.partition(":")[2].removeprefix("///").rpartition(":")[0] for address in addresses(target)]
    return all(host == "localhost" or ((ip := _ip(host)) and ip.is_loopback) for host in hosts)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


OPTIONS: list[tuple[str, Any]] = [
    # Weights go in the message of their call, so protobuf's 2 GiB is the bound, not gRPC's default of 4 MiB. What comes
    # back is smaller: large tensors come in pieces, and lists in pages.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    *LARGE_FRAMES,
    # Replicas are interchangeable, so calls are spread over all addresses.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Retries are the client's own (RetryRule): gRPC's would not repeat a tensor.
    ("grpc.enable_retries", 0),
    # A server that restarts is found again while one call is sent again: not after up to two minutes, gRPC's default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Where an address swallows what is sent to it, an attempt to connect ends after this, not after 20 seconds.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # With a keepalive gRPC bounds how long what was written may stay unread (TCP_USER_TIMEOUT): without, calls wait
    # beyond their deadline on a connection whose other end has half closed it and reads no more. A ping in five
    # minutes is what every server allows.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.primary_user_agent", f"convserve/{__version__}"),
]
