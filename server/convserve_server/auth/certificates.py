"""The server's certificate: TLS for callers, and with a CA of the callers' own mutual TLS.

The files are looked at with every connection that is made. So a certificate that was renewed is used from the next one
on, and connections that are open stay.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc

from convserve_server.auth.reloaded_files import ReloadedFiles
from convserve_server.settings import SettingsError


class Certificate:
    """PEM files of a certificate with its chain, its private key, and of the CA that signs callers' certificates."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Reads the files; without a `client_ca` callers need no certificate.

        Raises SettingsError if a file cannot be read or is wrong, or the key is not the certificate's.
        """
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = ReloadedFiles([certificate, key, client_ca], self._read, "--tls-certificate")

    @classmethod
    def of(cls, certificate: str, key: str, client_ca: str) -> Certificate | None:
        """Returns the certificate of these settings; None if they ask for no TLS. Raises SettingsError."""
        if bool(certificate) != bool(key):
            present, lacking = ("certificate", "key") if certificate else ("key", "certificate")
            raise SettingsError(f"--tls-{lacking}: Expected a file, for --tls-{present} is given. Received none.")
        if client_ca and not certificate:
            raise SettingsError("--tls-certificate: Expected a file, for --tls-client-ca is given. Received none.")
        return cls(certificate, key, client_ca) if certificate else None

    @property
    def is_mutual(self) -> bool:
        """Whether callers must show a certificate too."""
        return bool(self._client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials of one listener."""
        in_use = self._files.content()

        def changed() -> Any:
            nonlocal in_use
            newest = self._files.content()
            if newest is in_use:
                return None
            in_use = newest
            return newest

        return grpc.dynamic_ssl_server_credentials(in_use, changed, require_client_authentication=self.is_mutual)

    def _read(self) -> Any:
        # OpenSSL says what is wrong with the files, and gRPC does not.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        expected = (
            "--tls-certificate, --tls-key: Expected PEM files of a certificate and of its private key, not encrypted"
        )
        received = f"{self._certificate} and {self._key}"
        try:
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
            chain, key, root = Path(self._certificate).read_bytes(), Path(self._key).read_bytes(), None
            if self._client_ca:
                expected = "--tls-client-ca: Expected a PEM file of certificates"
                received = self._client_ca
                context.load_verify_locations(self._client_ca)
                root = Path(self._client_ca).read_bytes()
            return grpc.ssl_server_certificate_configuration([(key, chain)], root)
        except ssl.SSLError as error:
            why = (error.reason or "no PEM").replace("_", " ").lower()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no PEM"
        raise SettingsError(f"{expected}. Received {received}: {why}.")
