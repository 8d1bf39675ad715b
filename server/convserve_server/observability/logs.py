"""What the server says: progress on stdout and the log on stderr, in words for people or as JSON for programs."""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("convserve")
_progress = logging.getLogger("convserve.progress")

_PROGRAM = Path(__file__).with_name("stderr_lines.py")
_MAX_WRITING_S = 5.0
# TensorFlow says so, whatever its settings, when oneDNN's kernels are on, after a line that says that it is early.
_INFORMATION = re.compile(rb"(?m)^(?:I[0-9]{4} |WARNING: All log messages before absl).*\n")
# Shows what else a file holds once its input has ended.
_SHOW = f"""
import os, re, sys
sys.stdin.read()
os.lseek(%d, 0, 0)
os.write(2, re.sub({_INFORMATION.pattern!r}, b"", os.read(%d, 2**20)))
"""

_stderr = 2  # where the log goes: stderr as it was at first


def start_logging(level: str, form: str) -> logging.Handler:
    """Sends the log of the server, of gRPC and of OpenTelemetry to stderr, and progress to stdout.

    `form` is "text", or "json" for an object a line with the keys "level", "message" and "time", in UTC, then
    "exc_info" where there is a traceback, and whatever else the record was given. Returns the log's handler.
    """
    # Not sys.stderr: what is written there while TensorFlow starts is held back.
    stderr = open(os.dup(_stderr), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(formatter(form))
    stdout = _Stdout(sys.stdout)
    stdout.setFormatter(formatter(form, "%(message)s"))
    _progress.addHandler(stdout)
    _progress.propagate = False
    for logger in (log, *map(logging.getLogger, ("grpc", "opentelemetry", "py.warnings"))):
        logger.addHandler(handler)
        logger.propagate = False
    logging.captureWarnings(capture=True)
    if form == "json":
        sys.excepthook = lambda *error: log.critical("ended by an error", exc_info=error)
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


def write_json_lines() -> None:
    """Has every line that anything writes to stderr from now on become a JSON object, whatever way the process ends.

    Where no further process can be started, lines other than the log's stay as they are.
    """
    global _stderr  # noqa: PLW0603 (a process has one)
    reader, writer = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", str(_PROGRAM)]
        program = subprocess.Popen(command, stdin=reader, start_new_session=True)  # noqa: S603 (a program of ours)
    except OSError:
        os.close(writer)
        return
    finally:
        os.close(reader)
    first = _stderr = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)

    @atexit.register
    def write_what_is_left() -> None:
        sys.stderr.flush()
        os.dup2(first, 2)
        with suppress(subprocess.TimeoutExpired):
            program.wait(_MAX_WRITING_S)


@contextmanager
def held_stderr(*, may_end_here: bool = False) -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and shows it only if the block fails, but for information.

    TensorFlow's C++ side writes there before any of its own settings can stop it, and gRPC's whatever its settings.
    `may_end_here`: the block may end the process, as TensorFlow does on a CPU that it was not built for; then another
    process shows what was held. The signal is reported, too.
    """
    if may_end_here and os.getpid() == 1:  # of a container, where no process would be left to show it
        yield
        return
    sys.stderr.flush()
    terminal, reports_faults = os.dup(2), faulthandler.is_enabled()
    faulthandler.enable(terminal)
    with tempfile.TemporaryFile() as held, _shown_at_the_end(held.fileno(), wanted=may_end_here):
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, _INFORMATION.sub(b"", held.read()))
            raise
        finally:
            os.dup2(terminal, 2)
            faulthandler.disable()
            if reports_faults:
                faulthandler.enable()
            os.close(terminal)


@contextmanager
def _shown_at_the_end(file: int, *, wanted: bool) -> Iterator[None]:
    """Has a file's content written to stderr if this process ends within the block."""
    watcher = None
    if wanted:
        with suppress(OSError):  # no process can be started
            watcher = subprocess.Popen(  # noqa: S603 (a program of ours)
                [sys.executable, "-I", "-S", "-c", _SHOW % (file, file)],
                stdin=subprocess.PIPE,
                pass_fds=[file],
                start_new_session=True,
            )
    try:
        yield
    finally:
        if watcher is not None:
            watcher.kill()
            watcher.communicate()
