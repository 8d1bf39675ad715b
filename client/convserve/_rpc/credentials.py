"""Who a client says it is, and how its connections are protected: tokens, certificates, and the channels that use them.

>>> convserve.Client("gpu-host:50051", tls=convserve.TLS(ca="ca.pem"), token=token)
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from convserve._rpc import channel as _channel
from convserve.errors import InvalidRequestError, short_repr

TOKEN_VARIABLE = "CONVSERVE_TOKEN"  # noqa: S105
"""The environment variable that holds the token of a client without token=."""

_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")

_CERTIFICATE = ("certificate", rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----")
_KEY = ("private key that is not encrypted", rb"-----BEGIN (?!ENCRYPTED)[A-Z ]*PRIVATE KEY-----")

TOKEN_LEFT_BEHIND = "\0"  # noqa: S105
"""What stands for a token in what a client is pickled to."""

Pem = str | os.PathLike[str] | bytes
"""The path of a PEM file, or its content."""


@dataclass(frozen=True, repr=False)
class TLS:
    """How a connection is encrypted, and what both sides prove with.

    Attributes:
        ca: Of the CA that signed the server's certificate; None for those that the system trusts, or SSL_CERT_FILE and
            SSL_CERT_DIR of the environment name, else gRPC's own.
        certificate: Of this caller, where the server asks for one (mutual TLS).
        key: The private key of that certificate, not encrypted.
        server_name: The name that the server's certificate has, where it is not that of the target.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for what is no path, PEM or name, or a certificate without its key."""
        for name in ("ca", "certificate", "key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | os.PathLike | bytes):
                raise InvalidRequestError.for_field(f"tls.{name}", "a path or bytes", f"a {type(value).__name__}")
        if (self.certificate is None) != (self.key is None):
            lacking = "key" if self.key is None else "certificate"
            raise InvalidRequestError.for_field(f"tls.{lacking}", "a certificate together with its key", "one of them")
        if self.server_name is not None and not (isinstance(self.server_name, str) and self.server_name):
            raise InvalidRequestError.for_field("tls.server_name", "a name", short_repr(self.server_name))

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns gRPC's form of it; raises InvalidRequestError for a file that cannot be read, or is no PEM."""
        ca, key, certificate = (_pem(f"tls.{name}", getattr(self, name)) for name in ("ca", "key", "certificate"))
        return grpc.ssl_channel_credentials(_system_roots() if ca is None else ca, key, certificate)

    def __repr__(self) -> str:
        """Returns the paths; bytes may be a key, and are not shown."""
        values = ((name, value) for name, value in vars(self).items() if value)
        parts = (f"{name}={'...' if isinstance(value, bytes) else repr(value)}" for name, value in values)
        return f"TLS({', '.join(parts)})"


class Access:
    """What the channels to a target are made with."""

    def __init__(self, target: str, token: str | None, tls: TLS | bool | None) -> None:
        """Checks that the token goes to nobody but the server; the arguments are those of `Client`.

        Raises InvalidRequestError for what is no token or no TLS, or a token that others could read on its way.
        """
        is_of_environment = token is None or (isinstance(token, str) and token == TOKEN_LEFT_BEHIND)
        shown = os.environ.get(TOKEN_VARIABLE, "") if is_of_environment else token
        if is_of_environment and token and not shown:
            expected = f"the token again, which does not go from one process to another: in {TOKEN_VARIABLE}"
            raise InvalidRequestError.for_field("token", f"{expected}, or a client that is made there", "none")
        if not isinstance(shown, str) or not re.fullmatch(r"[!-~]*", shown):
            source = TOKEN_VARIABLE if is_of_environment else "token"
            expected = "a word of ASCII characters without blanks"
            raise InvalidRequestError.for_field(source, expected, "something else, which is not shown")
        if not isinstance(tls, TLS | bool | None):
            raise InvalidRequestError.for_field("tls", "None, a bool or a convserve.TLS", f"a {type(tls).__name__}")
        if shown and tls is None and not _channel.is_local(target):
            source = "token=, --token-file" if token else TOKEN_VARIABLE
            raise InvalidRequestError.for_field(
                "tls",
                f"an encrypted connection, for a token ({source}) is sent to {target}, where others could read it",
                "none: give tls=True (--tls) or tls=convserve.TLS(...) (--tls-ca and so on). Where something else "
                "encrypts it, tls=False (--no-tls) sends it as it is; token='' sends none",
            )
        self._target = target
        self._metadata = (("authorization", f"Bearer {shown}"),) if shown else ()
        self._tls = (TLS() if tls is True else tls) or None
        self._credentials = self._tls.credentials() if self._tls else None

    def channel(self, address: str, library: Any = grpc) -> Any:
        """Returns a channel of grpc's or grpc.aio's to the target, or to one of the servers that it leads to."""
        options = _channel.options(self._target, address)
        if self._tls is None:
            channel = library.insecure_channel(address, options=options)
        else:
            name = self._tls.server_name
            if name is None and address != self._target:
                # One address of a name: the certificate is that of the name.
                resolved = _channel.name_to_resolve(self._target)
                name = resolved[0] if resolved else None
            if name is not None:
                options.append(("grpc.ssl_target_name_override", name))
            channel = library.secure_channel(address, self._credentials, options=options)
        return TokenChannel(channel, self._metadata) if self._metadata else channel


@dataclass(frozen=True, repr=False)
class TokenChannel:
    """A channel, of either kind, whose calls all carry a token.

    gRPC's own ways cost more than a small call takes: its interceptors make every call a future, and its call
    credentials ask a thread of Python's for the token each time.
    """

    _channel: Any
    _metadata: tuple[tuple[str, str], ...]

    def _method(self, kind: str, *arguments: Any, **options: Any) -> _TokenMethod:
        return _TokenMethod(getattr(self._channel, kind)(*arguments, **options), self._metadata)

    unary_unary = partialmethod(_method, "unary_unary")
    unary_stream = partialmethod(_method, "unary_stream")
    stream_unary = partialmethod(_method, "stream_unary")
    stream_stream = partialmethod(_method, "stream_stream")

    def close(self) -> Any:
        """Closes the channel; of asyncio's, returns what is to be awaited."""
        return self._channel.close()


@dataclass(frozen=True, repr=False)
class _TokenMethod:
    _method: Any
    _metadata: tuple[tuple[str, str], ...]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._method(*arguments, metadata=self._metadata, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._method.future(*arguments, metadata=self._metadata, **options)


def _system_roots() -> bytes | None:
    """Returns the CAs that this machine trusts, as OpenSSL and its variables have them; None for gRPC's own."""
    if os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):  # which gRPC reads
        return None
    named, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if named:
        return _pem("SSL_CERT_FILE", named)
    if folders:
        return _pems_in(folders)
    import ssl

    paths = ssl.get_default_verify_paths()
    found = next((path for path in (paths.cafile, *_BUNDLES) if path and os.path.exists(path)), None)
    return Path(found).read_bytes() if found else None


def _pems_in(folders: str) -> bytes:
    """Returns the certificates in the folders of SSL_CERT_DIR; what cannot be read is passed over, as by OpenSSL."""
    found = []
    for path in (path for folder in folders.split(os.pathsep) for path in sorted(Path(folder).glob("*"))):
        with suppress(OSError):
            if re.search(_CERTIFICATE[1], content := path.read_bytes()):
                found.append(content)
    if not found:
        raise InvalidRequestError.for_field(
            "SSL_CERT_DIR", "a PEM file of a CA in it", f"{short_repr(folders)}, with none"
        )
    return b"\n".join(found)


def _pem(name: str, pem: Pem | None) -> bytes | None:
    if pem is None:
        return None
    source = "bytes" if isinstance(pem, bytes) else short_repr(os.fspath(pem))  # bytes may be a key
    kind, sign = _KEY if name == "tls.key" else _CERTIFICATE
    try:
        content = pem if isinstance(pem, bytes) else Path(pem).read_bytes()
        if not re.search(sign, content):  # else gRPC takes it, and says of every connection that it cannot be made
            raise ValueError("there is none in it")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequestError.for_field(name, f"a PEM file with a {kind}", f"{source}: {why}") from error
    return content
