"""Which channel both clients open: gRPC's name of the target, its addresses, and the channel's options."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from convserve._version import __version__
from convserve.errors import InvalidRequestError, short_repr
from convserve.protocol.addresses import ip_address, is_localhost, split_address, unix_path
from convserve.tensors.pieces import LARGE_FRAMES

DEFAULT_TARGET = "localhost:50051"
TARGET_VARIABLE = "CONVSERVE_TARGET"
"""The environment variable that names the server of those who name none."""
DEFAULT_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 2**24
"""Of a message that a server sends: more than any of an honest one's."""


Target = str | Sequence[str]
"""One address, or several as a list or with commas between them."""


def default_target() -> str:
    """Returns the target of those who name none: that of the environment, else this machine's."""
    return os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET


def given_target(target: Target | None) -> tuple[Target, str]:
    """Returns the target that a caller names, or that of those who name none, and gRPC's name of it.

    Raises InvalidRequestError as `channel_target`.
    """
    if target is not None:
        return target, channel_target(target)
    target = default_target()
    return target, channel_target(target, TARGET_VARIABLE)


def channel_target(target: Target, field: str = "target") -> str:
    """Returns gRPC's name of one or several addresses.

    These are "host:port", "unix:///path", any other gRPC target with its scheme, or several "ip:port" as a list or
    separated by commas.

    Raises InvalidRequestError for anything else; its text says what is wrong.
    """
    try:
        listed = [address.strip() for address in (target.split(",") if isinstance(target, str) else target)]
        scheme, _, first = listed[0].partition(":") if listed else ("", "", "")
        if scheme in ("ipv4", "ipv6"):
            return _several([first, *listed[1:]])
        return _one(listed[0]) if len(listed) == 1 else _several(listed)
    except (ValueError, AttributeError, TypeError) as error:  # the latter for what is no text
        expected = "'host:port', 'unix:///path', or several 'ip:port'"
        why = f": {error}" if isinstance(error, ValueError) else ""
        raise InvalidRequestError.for_field(field, expected, f"{short_repr(target)}{why}") from None


def _one(address: str) -> str:
    scheme, _, rest = address.partition(":")
    if unix_path(address) or re.fullmatch(r"unix-abstract:.+|xds://.+|vsock:[0-9]+:[0-9]+", address):
        return address
    if scheme == "dns":
        resolver = re.match("//[^/]*/", rest)  # which may be another than the system's
        split_address(rest[resolver.end() if resolver else 0 :])
        return address
    split_address(address)
    # With dns:/// every address of a name is used, not only the first that answers.
    return f"dns:///{address}"


def _several(listed: list[str]) -> str:
    listed = [re.sub("^localhost:", "127.0.0.1:", address, flags=re.IGNORECASE) for address in listed]
    ips = [ip_address(split_address(address)[0]) for address in listed]
    versions = {ip and ip.version for ip in ips}
    if len(versions) != 1 or None in versions:
        raise ValueError(
            "several are IP addresses of one version; for host names give one DNS name that resolves to all of them"
        )
    return f"ipv{versions.pop()}:{','.join(listed)}"


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
    if scheme != "dns" or not host or is_localhost(host) or ip_address(host):
        return None
    return host, port


def look_up(host: str, port: str) -> concurrent.futures.Future[tuple[str, ...]]:
    """Returns a future of gRPC's names of the addresses that a host name leads to, in an order that all callers see.

    There are none if the resolver does not know the host: gRPC may know more of the name, or will say what is wrong.
    The resolver has no time limit of its own, so that it works in a thread that nobody waits for longer than they may.
    """
    future: concurrent.futures.Future[tuple[str, ...]] = concurrent.futures.Future()

    def resolve() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            infos = []
        if future.set_running_or_notify_cancel():  # else its caller has given up
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
    return all(is_localhost(host) or ((ip := ip_address(host)) and ip.is_loopback) for host in hosts)


def options(target: str, address: str) -> list[tuple[str, Any]]:
    """Returns gRPC's options of a channel to a target of its own, or to one of the addresses that it leads to."""
    is_listed = target.startswith(("ipv4:", "ipv6:"))
    name = name_to_resolve(target)
    is_excepted = name is not None and address != target and _needs_no_proxy(name[0])
    # gRPC would ask $http_proxy for localhost too, and show it the token; for several addresses it would ask for all
    # at once; and for an address of a name it looks for the address in $no_proxy.
    proxy = [("grpc.enable_http_proxy", 0)] if is_local(target) or is_listed or is_excepted else []
    # Replicas are interchangeable, so calls are spread over all addresses. Those of localhost may be two servers, each
    # with layers of its own.
    policy = "pick_first" if is_localhost(target.removeprefix("dns:///").rpartition(":")[0]) else "round_robin"
    config: dict[str, Any] = {"loadBalancingConfig": [{policy: {}}], "methodConfig": _METHODS}
    # A server that stops says so before it refuses calls, which then go to the others. A single address may be a load
    # balancer's: what it passes on would be the health of one of the servers behind it.
    if len(addresses(address)) > 1:
        config["healthCheckConfig"] = {"serviceName": ""}
    return [*_OPTIONS, *proxy, ("grpc.service_config", json.dumps(config))]


def _needs_no_proxy(host: str) -> bool:
    """Returns whether the environment excepts a host, or the domain that it is of, from its proxy."""
    listed = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy", "")  # noqa: SIM112 (as gRPC has it)
    domains = (each.strip().removeprefix(".") for each in listed.split(","))
    return any(domain and f".{host}".endswith(f".{domain}") for domain in domains)


# Large tensors come in pieces, and lists in pages; what `convserve bench` has echoed is as long as it asks for.
_METHODS = [
    {"name": [{}], "maxResponseMessageBytes": MAX_ANSWER_BYTES},
    {"name": [{"service": "convserve.v1.ConvolutionService", "method": "Echo"}]},
]
_OPTIONS: list[tuple[str, Any]] = [
    # Weights go in the message of their call, so protobuf's 2 GiB is the bound, not gRPC's default of 4 MiB. What comes
    # back has a bound of its own.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    *LARGE_FRAMES,
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
