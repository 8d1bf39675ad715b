"""Where the server listens, and who can call there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

import grpc

from convserve.protocol.addresses import split_address, unix_path
from convserve_server.addresses import bound, places, refusal
from convserve_server.auth.certificates import Certificate
from convserve_server.auth.tokens import Tokens
from convserve_server.observability.logs import held_stderr
from convserve_server.settings import is_loopback


class Listener:
    """An address to listen on, which is held until then, so that what is wrong with it is mostly known at once.

    Nobody is connected while it is only held: a caller that tries is refused, and comes again. Another server can hold
    it too, as the system allows while nobody listens; the one that listens later is then refused.
    """

    def __init__(self, address: str) -> None:
        """Holds an address, a name at all its addresses on this machine, with a port that is free if it has none.

        Raises SettingsError, with the system's reason, if one of them is taken or may not be used.
        """
        self.address, self._path = address, unix_path(address)
        self._held: list[tuple[int, str, socket.socket]] = []
        self._port = 0
        place = address
        try:
            if self._path:
                _check_free(self._path)
                return
            host, port = split_address(address, least_port=0)
            found, self._port = places(host, port)
            for family, ip in found:
                place = f"{address} ({ip})" if ip != host else address
                held = bound(family, ip, self._port)
                self._held.append((family, ip, held))
                self._port = held.getsockname()[1]
        except OSError as error:
            self.close()
            raise refusal("listen", place, error) from error
        self.address = f"{address.rpartition(':')[0]}:{self._port}"

    def close(self) -> None:
        """Lets go of what is held."""
        for *_, held in self._held:
            held.close()

    def listen(self, server: grpc.Server, certificate: Certificate | None) -> None:
        """Listens, encrypted if there is a certificate; raises SettingsError if somebody took the address meanwhile."""
        place = self.address
        try:
            if self._path:
                _check_free(self._path)
                _add(server, self.address, None)  # of a Unix socket nothing leaves the machine
            self.close()
            for family, ip, _ in self._held:
                place = f"[{ip}]:{self._port}" if ":" in ip else f"{ip}:{self._port}"
                with bound(family, ip, self._port):  # else another program listens there by now
                    pass
                _add(server, place, certificate)
        except OSError as error:
            raise refusal("listen", place, error) from error


def _add(server: grpc.Server, address: str, certificate: Certificate | None) -> int:
    """Has gRPC listen on an address, which does not say why it cannot; returns the port."""
    port = 0
    with held_stderr(), suppress(RuntimeError):  # gRPC would say there what is said below
        if certificate is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificate.credentials())
    if not port:
        raise OSError(f"gRPC cannot listen on {address}")
    return port


def _check_free(path: str) -> None:
    """Raises OSError if there cannot be a socket at a path, or there is one that somebody listens on.

    gRPC would take it away from them; one that nobody listens on any more, it replaces.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, "there is a file that is no socket") from None
            return
        except FileNotFoundError:
            probe.bind(path)
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def exposure(address: str, certificate: Certificate | None, tokens: Tokens) -> str:
    """Returns what others on the network can do to a server that listens there; nothing if it is closed to them."""
    if is_loopback(address) or (certificate is not None and (tokens or certificate.is_mutual)):
        return ""
    if certificate is not None:
        return "calls to it are encrypted but not authenticated: everybody may call (--tokens-file, --tls-client-ca)"
    if tokens:
        return "calls to it are not encrypted, so tensors and tokens can be read on their way (--tls-certificate)"
    return "calls to it are neither encrypted nor authenticated (--tls-certificate, --tokens-file)"
