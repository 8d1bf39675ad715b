"""Where the server listens, and who can call there."""

from __future__ import annotations

import socket
from contextlib import suppress

import grpc

from convserve_server.auth.certificates import Certificate
from convserve_server.auth.tokens import Tokens
from convserve_server.observability.logs import held_stderr
from convserve_server.settings import SettingsError, is_loopback


def listen(server: grpc.Server, address: str, certificate: Certificate | None) -> str:
    """Listens on an address, encrypted if there is a certificate; returns it with its port. Raises SettingsError."""
    port, path = 0, unix_path(address)
    if not (path and _is_taken(path)):
        with held_stderr(), suppress(RuntimeError):  # gRPC would say there what is said below
            if certificate is None or path:  # of a Unix socket nothing leaves the machine
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, certificate.credentials())
    if not port:
        raise SettingsError(f"--listen: Expected an address that is free and may be used. Received {address}.")
    return address if path else f"{address.rpartition(':')[0]}:{port}"


def unix_path(address: str) -> str:
    """Returns the path of a Unix socket's address; nothing for any other."""
    return address.removeprefix("unix:").removeprefix("//") if address.startswith("unix:") else ""


def _is_taken(path: str) -> bool:
    """Returns whether somebody listens on a Unix socket, which gRPC would take away from them."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(path)
        return True
    return False


def exposure(address: str, certificate: Certificate | None, tokens: Tokens) -> str:
    """Returns what others on the network can do to a server that listens there; nothing if it is closed to them."""
    if is_loopback(address) or (certificate is not None and (tokens or certificate.is_mutual)):
        return ""
    if certificate is not None:
        return "calls to it are encrypted but not authenticated: everybody may call (--tokens-file, --tls-client-ca)"
    if tokens:
        return "calls to it are not encrypted, so tensors and tokens can be read on their way (--tls-certificate)"
    return "calls to it are neither encrypted nor authenticated (--tls-certificate, --tokens-file)"
