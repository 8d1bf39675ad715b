"""The program `convserve`.

Each command is a module with `HELP`, `add_arguments(parser)` and `run(arguments)`, and is loaded only when it is the
one asked for, so that `convserve --help` is quick. The server's commands are found through the entry-point group
`convserve.commands`, because the client never imports the server.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Protocol, cast

ENTRY_POINTS = "convserve.commands"
"""The entry-point group in which the commands of other packages are found."""

_DESCRIPTION = """\
Conv2D as a service: send a keras.layers.Conv2D layer and a tensor to a server,
get the output back. No TensorFlow is needed on this side."""

_EXAMPLES = """\
examples:
  convserve serve                                    start a server here, on port 50051
  convserve conv2d photo.jpg --kernel sobel-x --picture edges.png
  convserve conv2d x.npy --filters 64 --kernel-size 3 --output y.npy
  convserve plan --input-shape 4,600,600,3 --filters 64 --kernel-size 3
  convserve layers import resnet50.keras             store the Conv2Ds of a model

'convserve COMMAND --help' explains a command, with examples."""

# The text is kept apart from the modules, so that the list of commands is shown without loading any.
_COMMANDS = {
    "conv2d": "apply a Conv2D layer to an array or a picture",
    "plan": "say what a call would cost, without computing it",
    "batch": "apply a layer to many files: folders of pictures, arrays, Zarr; can be resumed",
    "layers": "list, put, get, delete and import stored layers",
    "bench": "measure a server: latency, throughput, and where the time goes",
    "health": "ask whether a server is serving (for probes of containers)",
    "info": "say what a server is: versions, devices, dtypes, limits",
    "top": "watch a server: calls, latencies, batches, memory (needs convserve[top])",
    "serve": "start a server (needs the extra: pip install 'convserve[server]')",
}
_OF_THE_SERVER = frozenset({"serve"})

_MISSING_SERVER = "convserve serve needs the server extra: pip install 'convserve[server]'"
_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for a program that Ctrl-C ended
_BROKEN_PIPE = 141  # 128 + SIGPIPE


class Command(Protocol):
    """What a command's module has."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's options, and may set the parser's description and epilog."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Does what was asked, and returns the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        argv: The arguments after the program's name; None for the process' own.

    Returns:
        The exit status: 0 for success, 1 for a failure that was told on stderr, 130 after Ctrl-C.

    Raises:
        SystemExit: With status 2 for wrong usage, and 0 for `--help` and `--version`, as argparse does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = argparse.Namespace()
    try:
        # The program's own options take no value, so the first word that is no option is the command.
        name = next((word for word in words if not word.startswith("-")), None)
        command = _command(name) if name is not None else None
        arguments = _parser(name, command).parse_args(words)
        # Without a command, argparse has ended the program with its help or a complaint.
        status = cast(Command, command).run(arguments)
        sys.stdout.flush()  # here rather than at exit, so that a closed pipe is noticed while it can be handled
        return status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _BROKEN_PIPE
    except _MissingServerError:
        print(_MISSING_SERVER, file=sys.stderr)
        return 1
    except Exception as error:
        from convserve.cli.output.failures import told

        text = told(error, arguments)
        if text is None:  # a defect: its traceback is what a report of it needs
            raise
        print(text, file=sys.stderr)
        return 1


class _MissingServerError(Exception):
    """The packages of the server extra are not installed."""


def _command(name: str) -> Command | None:
    """Returns the command's module, or None for a name that means nothing."""
    if name in _COMMANDS and name not in _OF_THE_SERVER:
        return cast(Command, importlib.import_module(f"convserve.cli.commands.{name}"))
    found = tuple(metadata.entry_points(group=ENTRY_POINTS, name=name))
    if not found:
        if name in _OF_THE_SERVER:
            raise _MissingServerError
        return None
    return _ServerCommand(found[0])


class _ServerCommand:
    """A command of the server, whose missing packages are told in one line rather than in a traceback."""

    def __init__(self, entry_point: metadata.EntryPoint) -> None:
        try:
            self._command = cast(Command, entry_point.load())
        except ModuleNotFoundError as error:
            raise _without_server(error) from error
        self.HELP = self._command.HELP

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        self._command.add_arguments(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        try:
            return self._command.run(arguments)
        except ModuleNotFoundError as error:
            raise _without_server(error) from error


def _without_server(error: ModuleNotFoundError) -> Exception:
    """Returns what to raise instead: a module of our own that is missing is a defect, any other is the extra."""
    own = (error.name or "").startswith(("convserve.", "convserve_server."))
    return error if own else _MissingServerError()


def _parser(name: str | None, command: Command | None) -> argparse.ArgumentParser:
    """Returns the program's parser, in which only the command asked for has its options."""
    parser = argparse.ArgumentParser(
        prog="convserve",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show convserve's version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = dict(_COMMANDS)
    if name is not None and command is not None:
        listed.setdefault(name, command.HELP)
    for each, text in listed.items():
        subparser = commands.add_parser(
            each,
            help=text,
            description=command.HELP if each == name and command else text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if each == name and command is not None:
            # What parsing alone cannot see, such as options that contradict each other, is refused in the same way.
            subparser.set_defaults(refuse=subparser.error)
            command.add_arguments(subparser)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from convserve import __version__

        print(f"convserve {__version__}")
        parser.exit()


def _discard_output() -> None:
    """Points stdout to nowhere, so that the flush at exit does not complain about the closed pipe again."""
    with contextlib.suppress(OSError, ValueError):  # stdout is not a file, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
