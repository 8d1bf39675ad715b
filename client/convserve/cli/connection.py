"""The options that name a server, and the client that they make."""

from __future__ import annotations

import argparse
import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convserve import Client

TARGET_VARIABLE = "CONVSERVE_TARGET"
"""The environment variable that names the server where `--target` does not."""
DEFAULT_TARGET = "localhost:50051"
"""The server where neither names one."""


def add_connection_options(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Adds `--target` and `--timeout`.

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
        type=_seconds,
        default=timeout,
        help="how long to wait for an answer (default: %(default)g)",
    )


def connect(arguments: argparse.Namespace, *, shared_memory: bool = True) -> Client:
    """Returns a client for the server that the options name.

    Args:
        arguments: The options of `add_connection_options`.
        shared_memory: Whether tensors may go through shared memory.
    """
    from convserve import Client

    return Client(arguments.target, timeout=arguments.timeout, shared_memory=shared_memory)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0. Received {text!r}.")
    return seconds
