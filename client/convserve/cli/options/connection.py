"""The options that name a server and say how it is called, and the client that they make."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import convserve
from convserve._rpc.channel import DEFAULT_TARGET, TARGET_VARIABLE, channel_target, default_target
from convserve._rpc.credentials import TLS, TOKEN_VARIABLE
from convserve.cli.command import Section, options_as_one
from convserve.cli.options.values import timeout as timeout_type
from convserve.errors import InvalidRequestError

_SERVER = Section("server")


@dataclass(frozen=True)
class Connection:
    """The values of the options."""

    target: str | None
    timeout: float
    token_file: str | None = None
    tls: bool | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None

    def __post_init__(self) -> None:
        """Warns of variables of the environment that are mistyped."""
        known = (TARGET_VARIABLE, TOKEN_VARIABLE)
        for name in sorted(set(os.environ) - set(known)):
            for similar in difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.9):
                click.echo(f"warning: {name} is not heeded. Did you mean {similar}?", err=True)

    @property
    def address(self) -> str:
        """The server's address, whoever names it."""
        return self.target or default_target()

    def client(self, *, shared_memory: bool = True) -> convserve.Client:
        """Returns a client of the server, which may send tensors through shared memory."""
        return convserve.Client(
            self.target, timeout=self.timeout, shared_memory=shared_memory, token=self._token(), tls=self.encryption()
        )

    def encryption(self) -> TLS | bool | None:
        """Returns how the connection is to be encrypted; None where the options leave it open."""
        parts = (self.tls_ca, self.tls_certificate, self.tls_key, self.tls_server_name)
        if all(part is None for part in parts):
            return self.tls
        if self.tls is False:
            raise click.UsageError("--no-tls: the other --tls options ask for encryption")
        return TLS(*parts)

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        try:
            (token,) = Path(self.token_file).read_text(encoding="ascii").split()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it holds something else"
            expected = "a file that holds a token and nothing else"
            raise InvalidRequestError.for_field("token_file", expected, f"{self.token_file}: {why}") from error
        return token


def _target(text: str) -> str:
    try:
        channel_target(text)
    except InvalidRequestError as error:
        raise click.BadParameter(error.violations[0].description) from None
    return text


def connection_options(*, timeout: float, token: bool = True) -> Callable[[Any], Any]:
    """Adds the options, of which the command gets a `Connection` named `connection`; `timeout` is the default.

    `token`: whether a command shows any.
    """
    # A token itself is no option: the command lines of a machine's processes can be read by all its users.
    token_file = _SERVER.option(
        "--token-file FILE", "a file that holds the token to show (default: the token in $CONVSERVE_TOKEN)"
    )
    return options_as_one(
        "connection",
        Connection,
        _SERVER.option(
            "--target HOST:PORT",
            f"the server's address (default: ${TARGET_VARIABLE}, else {DEFAULT_TARGET})",
            type=_target,
        ),
        _SERVER.option(
            "--timeout SECONDS",
            f"how long to wait for an answer, or inf (default: {timeout:g})",
            type=timeout_type,
            default=timeout,
        ),
        *([token_file] if token else []),
        _SERVER.option(
            "--tls/--no-tls",
            "encrypt the connection; the options below do so too. --no-tls sends a token without encryption",
            default=None,
        ),
        _SERVER.option("--tls-ca FILE", "PEM file of the server's CA (default: those that the system trusts)"),
        _SERVER.option("--tls-certificate FILE", "PEM file of your certificate, for mutual TLS"),
        _SERVER.option("--tls-key FILE", "PEM file of its private key"),
        _SERVER.option("--tls-server-name NAME", "the name in the server's certificate, if not the target's"),
    )
