"""The addresses that a host has on this machine, and ports that are free there."""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import ExitStack, nullcontext, suppress

from convserve.protocol.addresses import is_localhost
from convserve_server.settings import SettingsError, flag

log = logging.getLogger("convserve")

_MAX_TRIES = 20


def places(host: str, port: int) -> tuple[list[tuple[int, str]], int]:
    """Returns a host's addresses on this machine, and a port: the given one, or for 0 one that is free at all of them.

    If there is one address, the port may stay 0. Raises OSError if there is none.
    """
    if is_localhost(host):  # at both, as callers may try either, whatever this machine's own table says
        found = [(int(socket.AF_INET), "127.0.0.1"), (int(socket.AF_INET6), "::1")]
    else:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        found = list(dict.fromkeys((int(family), str(sockaddr[0])) for family, *_, sockaddr in infos))
    missing: OSError | None = None
    for family, ip in found.copy():
        try:
            bound(family, ip, 0).close()
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error
            found.remove((family, ip))
    if missing is not None:
        if not found:
            raise missing
        log.info("%s is listened on at %s alone: %s", host, ", ".join(ip for _, ip in found), missing.strerror)
    return found, port or (_free_port(found) if len(found) > 1 else 0)


def refusal(setting: str, place: str, error: OSError) -> SettingsError:
    """Returns the error of a setting that says to listen at a place where that cannot be."""
    expected = "Expected an address that is free and may be used"
    return SettingsError(f"{flag(setting)}: {expected}. Received {place}: {error.strerror or error}.")


def _free_port(addresses: list[tuple[int, str]]) -> int:
    """Returns a port that is free at all of these addresses: what the system picks at one may be taken at another."""
    for left in reversed(range(_MAX_TRIES)):
        with ExitStack() as held, suppress(OSError) if left else nullcontext():
            port = 0
            for family, ip in addresses:
                port = held.enter_context(bound(family, ip, port)).getsockname()[1]
            return port
    raise AssertionError


def bound(family: int, ip: str, port: int) -> socket.socket:
    """Returns a socket that has an address as gRPC's will have it, by which the system says why it cannot."""
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((ip, port))
    except BaseException:
        held.close()
        raise
    return held
