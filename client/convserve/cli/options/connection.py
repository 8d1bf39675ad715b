"""The options that name a server and say how it is called, and the client that they make."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from convserve.cli.options.values import seconds

if TYPE_CHECKING:
    from convserve import TLS, Client

TARGET_VARIABLE = "CONVSERVE_TARGET"
"""The environment variable that names the server where `--target` does not."""
DEFAULT_TARGET = "localhost:50051"
"""The server where neither names one."""


def add_connection_options(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Adds `--target`, `--timeout`, and the options that say who calls and how it is encrypted.

    Args:
        parser: The command's parser.
        timeout: The command's default timeout in seconds.
    """
    group = parser.add_argument_group("server")
    group.add_argument(
        "--target",
        metavar="HOST:PORT",
        default=os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET,
        help=f"the server's address (default: ${TARGET_VARIABLE}, else {DEFAULT_TARGET})",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=timeout,
        help="how long to wait for an answer (default: %(default)g)",
    )
    # A token itself is no option: the command lines of a machine's processes can be read by all its users.
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file that holds the token to show (default: the token in $CONVSERVE_TOKEN)",
    )
    group.add_argument(
        "--tls",
        action=argparse.BooleanOptionalAction,
        help="encrypt the connection; the options below do so too. --no-tls sends a token without encryption",
    )
    group.add_argument("--tls-ca", metavar="FILE", help="PEM file of the server's CA (default: gRPC's roots)")
    group.add_argument("--tls-certificate", metavar="FILE", help="PEM file of your certificate, for mutual TLS")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file of its private key")
    group.add_argument(
        "--tls-server-name", metavar="NAME", help="the name in the server's certificate, if not the target's"
    )


def connect(arguments: argparse.Namespace, *, shared_memory: bool = True) -> Client:
    """Returns a client for the server that the options name.

    Args:
        arguments: The options of `add_connection_options`.
        shared_memory: Whether tensors may go through shared memory.
    """
    from convserve import Client

    return Client(
        arguments.target,
        timeout=arguments.timeout,
        shared_memory=shared_memory,
        token=token(arguments),
        tls=tls(arguments),
    )


def token(arguments: argparse.Namespace) -> str | None:
    """Returns the token of `--token-file`; None without one.

    Raises:
        InvalidRequestError: If the file cannot be read, or holds something else.
    """
    if arguments.token_file is None:
        return None
    from convserve.errors import FieldViolation, InvalidRequestError

    try:
        found = Path(arguments.token_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it has other bytes than ASCII"
        text = f"Expected a file that holds a token. Received {arguments.token_file}: {why}."
        raise InvalidRequestError(FieldViolation("token_file", text)) from None
    if len(found.split()) != 1:
        text = f"Expected a file that holds a token and nothing else. Received {arguments.token_file}."
        raise InvalidRequestError(FieldViolation("token_file", text))
    return found


def tls(arguments: argparse.Namespace) -> TLS | bool | None:
    """Returns how the options want the connection to be encrypted."""
    parts = {
        "ca": arguments.tls_ca,
        "certificate": arguments.tls_certificate,
        "key": arguments.tls_key,
        "server_name": arguments.tls_server_name,
    }
    if not any(each is not None for each in parts.values()):
        return arguments.tls  # type: ignore[no-any-return]
    if arguments.tls is False:
        arguments.refuse("--no-tls: the other --tls options ask for encryption")
    from convserve import TLS

    return TLS(**parts)
