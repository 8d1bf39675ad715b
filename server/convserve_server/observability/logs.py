"""What the server says: progress on stdout and the log on stderr, in words for people or as JSON for programs."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("convserve")
_progress = logging.getLogger("convserve.progress")


def start_logging(level: str, form: str) -> logging.Handler:
    """Sends the log of the server, of gRPC and of OpenTelemetry to stderr, and progress to stdout.

    `form` is "text", or "json" for an object a line with the keys "level", "message" and "time", in UTC, then
    "exc_info" where there is a traceback, and whatever else the record was given. Returns the log's handler.
    """
    # Not sys.stderr: what is written there while TensorFlow starts is held back.
    handler = logging.StreamHandler(open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
    handler.setFormatter(formatter(form))
    stdout = _Stdout(sys.stdout)
    stdout.setFormatter(formatter(form, "%(message)s"))
    _progress.addHandler(stdout)
    _progress.propagate = False
    for logger in (log, logging.getLogger("grpc"), logging.getLogger("opentelemetry")):
        logger.addHandler(handler)
        logger.propagate = False
    log.setLevel(level.upper())
    _progress.setLevel(logging.INFO)
    return handler


def say(text: str) -> None:
    """Prints a line of progress at once, for people and for programs that wait for it, as long as somebody reads."""
    _progress.info(text)


def formatter(form: str, words: str = "%(asctime)s %(levelname)s %(message)s") -> logging.Formatter:
    """Returns what makes a line of a record."""
    if form == "text":
        return logging.Formatter(words)
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(["levelname", "message"], rename_fields={"levelname": "level"}, timestamp="time")


class _Stdout(logging.StreamHandler):  # type: ignore[type-arg]
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """Goes on without: a pipe that was closed, or a full disk, is no reason to lose calls."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def held_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and shows it only if the block fails.

    TensorFlow's C++ side writes there before any of its own settings can stop it, and gRPC's whatever its settings. A
    signal that ends the process, such as SIGILL on a CPU that TensorFlow was not built for, is still reported.
    """
    sys.stderr.flush()
    terminal, reports_faults = os.dup(2), faulthandler.is_enabled()
    faulthandler.enable(terminal)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            faulthandler.disable()
            if reports_faults:
                faulthandler.enable()
            os.close(terminal)
