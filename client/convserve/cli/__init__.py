"""The program `convserve`.

Each command is a module of `convserve.cli.commands` with a click command named `command`, and is loaded only when it is
asked for, so that `convserve --help` is quick. `serve` and `play` are loaded by name, from packages that the command
line does not import; other packages bring commands by entry points of the group `convserve.commands`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata

import click

from convserve._version import __version__
from convserve.cli.command import Group, help_page
from convserve.errors import why_not_imported

ENTRY_POINTS = "convserve.commands"
"""The entry-point group of commands that other packages bring."""

# The text is kept apart from the modules, so that the list of commands is shown without loading any.
_COMMANDS = {
    "conv2d": "apply a Conv2D layer to an array or a picture",
    "plan": "say what a call would cost, without computing it",
    "play": "try every parameter on a page in the browser (needs convserve[play])",
    "batch": "apply a layer to many files: folders of pictures, arrays, Zarr; can be resumed",
    "layers": "list, put, get, move, delete and import stored layers",
    "bench": "measure a server: latency, throughput, and where the time goes",
    "health": "ask whether a server is serving (for probes of containers)",
    "info": "say what a server is: versions, devices, dtypes, limits",
    "top": "watch a server: calls, latencies, batches, memory (needs convserve[top])",
    "serve": "start a server (needs the extra: pip install 'convserve[server]')",
}
_ELSEWHERE = {"serve": "convserve_server.command", "play": "convserve.play.command"}
"""Modules of commands that are not in `convserve.cli.commands`."""

_MISSING_SERVER = "convserve serve needs the server extra: pip install 'convserve[server]' (options: docs/settings.md)"
_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for a program that Ctrl-C ended
_BROKEN_PIPE = 141  # 128 + SIGPIPE


class _Program(Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in _COMMANDS:
            module = _ELSEWHERE.get(cmd_name, f"convserve.cli.commands.{cmd_name}")
            return importlib.import_module(module).command  # type: ignore[no-any-return]
        brought = tuple(metadata.entry_points(group=ENTRY_POINTS, name=cmd_name))
        return brought[0].load() if brought else None


_listed = {name: click.Command(name, short_help=text) for name, text in _COMMANDS.items()}


@click.command("convserve", cls=_Program, commands=_listed, **help_page("main"))
@click.version_option(__version__, message="convserve %(version)s")
def program() -> None:
    """Is the program; each command does what is to be done."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with the arguments after its name, None for the process' own.

    Returns the exit status: 0 for success, 1 for a failure (stderr has the text), 2 for wrong usage, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    try:
        with program.make_context("convserve", words, help_option_names=["-h", "--help"]) as context:
            status = program.invoke(context)
        sys.stdout.flush()  # here rather than at exit, so that a closed pipe is noticed while it can be handled
        return status or 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        del (getattr(error, "possibilities", None) or [])[1:]  # of options and commands that may be meant, the nearest
        with contextlib.suppress(OSError):  # stderr takes no more
            shown = io.StringIO()
            error.show(shown)
            print(re.sub("^Error: ", "error: ", shown.getvalue(), count=1, flags=re.MULTILINE), end="", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_what_is_left()
        return _BROKEN_PIPE
    except OSError as error:  # of stdout, most likely; others have been put in words where they came
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr)
        _drop_what_is_left()
        return 1
    except Exception as error:
        if words[:1] != ["serve"]:
            raise
        print(why_not_imported(error, _MISSING_SERVER), file=sys.stderr)
        return 1


def _open_standard_streams() -> None:
    """Opens standard streams that are closed, so that no file takes their numbers; stdout shows any file's name."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (it stays open)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_what_is_left() -> None:
    """Drops what is left for stdout or stderr if it takes no more, of which the end of Python would complain again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # it is not a file, as in a test
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
