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
from convserve.errors import FieldViolation, InvalidRequestError, short_repr
from convserve.protocol.http2_options import LARGE_FRAMES

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 60.0
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:", "vsock:")  # of gRPC's targets


def channel_target(target: str | Sequence[str]) -> str:
    """Returns gRPC's name of one or several addresses.

    Args:
        target: "host:port", "unix:///path", any other gRPC target with its scheme, or several "ip:port" as a list or
            separated by commas.

    Raises:
        InvalidRequestError: For an empty target, or several of which one is not an IP address.
    """
    addresses = [part.strip() for part in target.split(",")] if isinstance(target, str) else list(target)
    if not addresses or not all(isinstance(address, str) and address for address in addresses):
        text = f"Expected 'host:port', 'unix:///path', or several 'ip:port'. Received {short_repr(target)}."
        raise InvalidRequestError(FieldViolation("target", text))
    if len(addresses) == 1:
        host, _, port = addresses[0].rpartition(":")
        if not host or not port or "]" in port:
            text = f"Expected 'host:port'. Received {short_repr(target)}."
            raise InvalidRequestError(FieldViolation("target", text))
        # With dns:/// every address of a name is used, not only the first that answers.
        return addresses[0] if addresses[0].startswith(_SCHEMES) else f"dns:///{addresses[0]}"
    versions = {_ip_version(address.replace("localhost:", "127.0.0.1:")) for address in addresses}
    if len(versions) != 1 or 0 in versions:
        text = (
            "Expected several addresses to be IP addresses of one version with a port; for host names give one DNS "
            f"name that resolves to all of them. Received {short_repr(target)}."
        )
        raise InvalidRequestError(FieldViolation("target", text))
    return f"ipv{versions.pop()}:" + ",".join(address.replace("localhost:", "127.0.0.1:") for address in addresses)


def addresses(target: str) -> tuple[str, ...]:
    """Returns gRPC's name of each server that a target lists, or of the target itself if it is one.

    Args:
        target: What `channel_target` returned.
    """
    scheme, _, listed = target.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return (target,)
    return tuple(f"{scheme}:{address}" for address in listed.split(","))


def name_to_resolve(target: str) -> tuple[str, str] | None:
    """Returns host and port of a target that may lead to several servers, or None.

    Args:
        target: What `channel_target` returned.
    """
    scheme, _, address = target.partition(":")
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if scheme != "dns" or not host or host == "localhost" or _ip_version(f"{host}:{port}"):
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
            future.set_result(resolved(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError:
            future.set_result(())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=resolve, name="convserve-resolve", daemon=True).start()
    return future


def resolved(found: Iterable[tuple[Any, ...]]) -> tuple[str, ...]:
    """Returns gRPC's names of what `socket.getaddrinfo` found, in an order that is the same for everybody."""
    names = {f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}" for *_, (host, port, *_) in found}
    return tuple(sorted(names))


def is_local(target: str) -> bool:
    """Returns whether a target is one server on this machine.

    Args:
        target: What `channel_target` returned.
    """
    scheme, _, address = target.partition(":")
    host = address.removeprefix("///").rpartition(":")[0].strip("[]")
    if scheme == "unix" or host == "localhost":
        return True
    try:
        return "," not in address and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ip_version(address: str) -> int:
    host = address.rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return 0


def channel_options() -> list[tuple[str, Any]]:
    """Returns the options of a channel."""
    return [
        # A tensor is as large as it is: protobuf's 2 GiB is the bound, not gRPC's default of 4 MiB.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        *LARGE_FRAMES,
        # Replicas are interchangeable, so calls are spread over all addresses.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        # Retries are the client's own (RetryRule): gRPC's would not repeat a tensor.
        ("grpc.enable_retries", 0),
        # A server that restarts is found again within seconds, not after gRPC's default of up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Where an address swallows what is sent to it, an attempt to connect ends after this, not after 20 seconds.
        ("grpc.min_reconnect_backoff_ms", 5000),
        # With a keepalive gRPC bounds how long what was written may stay unread (TCP_USER_TIMEOUT): without, calls wait
        # beyond their deadline on a connection whose other end has half closed it and reads no more. A ping in five
        # minutes is what every server allows.
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.primary_user_agent", f"convserve/{__version__}"),
    ]
