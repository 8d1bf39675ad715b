"""What the address of a server is. Clients, the command line and the server check those that they are given."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")


def split_address(text: str, *, least_port: int = 1) -> tuple[str, int]:
    """Returns host and port of "host:port", an IPv6 address without its brackets.

    Raises ValueError, whose text says what is wrong, for anything else.
    """
    if not text or text != text.strip() or not text.isprintable() or " " in text:
        raise ValueError("it is empty, or has blanks")
    if "://" in text:
        raise ValueError(f"leave out '{text.partition('://')[0]}://'")
    if text.startswith("unix:"):
        raise ValueError("it is a path")
    head, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ValueError("it has no port")
    if "[" not in text and ip_address(text):
        raise ValueError("it has no brackets, or no port")
    if "/" in text:
        raise ValueError(f"leave out '/{text.partition('/')[2]}'")
    if not re.fullmatch("[0-9]{1,5}", port, re.ASCII) or not least_port <= int(port) < 2**16:
        raise ValueError(f"its port {port!r} is no number from {least_port} to {2**16 - 1}")
    host = head.removeprefix("[").removesuffix("]")
    if ip_address(host) and ":" in host and head != f"[{host}]":
        raise ValueError(f"an IPv6 address has brackets: [{host}]:{port}")
    is_numeric = host.rpartition(".")[2].isdecimal() or head != host
    if not (ip_address(host) if is_numeric else _HOST.fullmatch(host)):
        raise ValueError(f"{head!r} is no host")
    return host, int(port)


def unix_path(text: str) -> str:
    """Returns the path of "unix:path" or "unix:///path", and "" for another address.

    Raises ValueError, whose text says what is wrong, for a unix: address without a path of a socket.
    """
    if not text.startswith("unix:"):
        return ""
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith("/"):
            raise ValueError("after unix:// comes the whole path, from its first '/'")
    if not path or "\0" in path or path.endswith("/"):
        raise ValueError("it has no path of a socket")
    if path.isdecimal():
        raise ValueError(f"a port has a host before it; a file of this name is unix:./{path}")
    return path


def is_localhost(host: str) -> bool:
    """Returns whether a host is this machine by its name, in whatever case."""
    return host.lower() == "localhost"


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the IP address that a host is, with or without brackets; None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
