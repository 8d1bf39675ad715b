"""The server's log: lines on stderr, in words for people or as JSON for programs."""

from __future__ import annotations

import logging
import os
import sys

log = logging.getLogger("convserve")

FORMATS = ("text", "json")
"""The forms that the log may have."""


def log_to_stderr(level: str, form: str) -> logging.Handler:
    """Sends the log of the server, of gRPC and of OpenTelemetry to stderr; returns what writes it.

    Args:
        level: The least important that is written, such as "info".
        form: One of FORMATS.
    """
    # Not sys.stderr: what is written there while TensorFlow starts is held back.
    handler = logging.StreamHandler(open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
    handler.setFormatter(formatter(form))
    for each in (log, logging.getLogger("grpc"), logging.getLogger("opentelemetry")):
        each.addHandler(handler)
        each.propagate = False
    log.setLevel(level.upper())
    return handler


def formatter(form: str) -> logging.Formatter:
    """Returns what makes a line of a record.

    As JSON it is one object with the keys "level", "message" and "time", in UTC, then "exc_info" where there is a
    traceback, and whatever else the record was given.
    """
    if form == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(["levelname", "message"], rename_fields={"levelname": "level"}, timestamp="time")


def say(text: str) -> None:
    """Prints a line of progress at once, for people and for programs that wait for it, as long as somebody reads."""
    try:
        print(text, flush=True)  # noqa: T201
    except OSError:  # a pipe that was closed, or a full disk, is no reason to lose calls
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
