"""click's commands with options under headings, texts that are printed as they are written, and failures in words.

What the help of a command says beside its options is in help/COMMAND.txt, as it is printed.
"""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from convserve._rpc.channel import default_target
from convserve.cli.output.report import show_progress
from convserve.errors import (
    ConvserveError,
    InvalidArgumentError,
    InvalidConfigurationError,
    InvalidRequestError,
    InvalidTensorError,
    UnavailableError,
)

_WHICH_SERVER = "--target or CONVSERVE_TARGET names another server"
_HELP = Path(__file__).parent / "help"
Function = TypeVar("Function", bound=Callable[..., Any])


class Section(NamedTuple):
    """A part of a command's help: its heading, and a text below it."""

    title: str
    note: str = ""

    def option(self, form: str, text: str, *, dest: str | None = None, **attributes: Any) -> Callable[[Any], Any]:
        """Returns a decorator that adds an option, such as of the form "-o --output FILE", to a command.

        One without a word for its value, and without a type, is a flag. `dest` is the command's argument for it, if not
        the flag's name; `attributes` are what else click.Option takes.
        """
        words = form.split(" ")
        flags = [word for word in words if word.startswith("-")]
        metavar = words[-1] if len(words) > len(flags) else None
        if metavar is None and "type" not in attributes:
            attributes["is_flag"] = True
        names = flags if dest is None else [*flags, dest]
        return click.option(*names, cls=_Option, section=self, metavar=metavar, help=text, **attributes)


ARGUMENTS, OPTIONS, OUTPUT = Section("arguments"), Section("options"), Section("output")


class Failure(click.ClickException):
    """Ends the program with a text on stderr."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code  # type: ignore[misc] # click's own is a constant of the class

    def show(self, file: Any = None) -> None:
        """Prints the text."""
        print(self.message, file=file or sys.stderr)


class _Option(click.Option):
    def __init__(self, *args: Any, section: Section, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


class Command(click.Command):
    """A command whose help has `usages` (whole lines), `help` and `epilog` as they are written."""

    def __init__(self, *args: Any, usages: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._usages = usages

    def invoke(self, context: click.Context) -> Any:
        """Runs the command; failures that it may expect become texts, below their notes of what was done."""
        try:
            return super().invoke(context)
        except ConvserveError as error:
            show_progress("")
            text = "\n".join([*getattr(error, "__notes__", ()), format_error(error, context)])
            raise Failure(text, 2 if _is_usage(error, context) else 1) from error

    def format_usage(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a line for each way to call the command."""
        indent = " " * len(f"usage: {context.command_path} ")
        for number, usage in enumerate(self._usages):
            first = "       " if number else "usage: "
            whole = textwrap.TextWrapper(formatter.width, first, indent, break_on_hyphens=False)
            formatter.write(f"{whole.fill(usage)}\n")

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Writes what the command does."""
        formatter.write(f"\n{self.help}\n")

    def format_arguments(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Leaves the arguments to `format_options`."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes arguments and options under their headings."""
        records: dict[Section, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            if record := parameter.get_help_record(context):
                default = ARGUMENTS if isinstance(parameter, click.Argument) else OPTIONS
                records.setdefault(getattr(parameter, "section", default), []).append(record)
        for section, rows in records.items():
            with formatter.section(section.title):
                if section.note:
                    formatter.write_text(section.note)
                    formatter.write_paragraph()
                formatter.write_dl(rows)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Writes the examples."""
        formatter.write(self.epilog or "")


class Group(Command, click.Group):
    """A command of commands."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, and the commands."""
        super().format_options(context, formatter)
        with formatter.section("commands"):
            formatter.write_dl([(name, command.get_short_help_str(99)) for name, command in self.commands.items()])


def help_page(name: str, **values: str) -> dict[str, Any]:
    """Returns a command's attributes that are in help/NAME.txt, with values for its $names.

    They are `usages`; `help`, whose first sentence stands in a list of commands too; and `epilog`.
    """
    page = Template((_HELP / f"{name}.txt").read_text(encoding="utf-8")).substitute(values)
    above, _, epilog = page.partition("\n\n[options]\n")
    usages, _, text = above.partition("\n\n")
    return {"usages": usages.splitlines(), "help": text, "epilog": epilog}


def new_command(name: str, **values: str) -> Callable[[Function], Command]:
    """Returns a decorator that makes a command of a function, which returns the exit status or None."""
    return click.command(cls=Command, **help_page(name, **values))


JSON = OPTIONS.option("--json", "print it as JSON", dest="as_json")
"""The option of commands that print a document for programs."""


def options_as_one(
    name: str, make: Callable[..., Any], *options: Callable[[Any], Any]
) -> Callable[[Function], Function]:
    """Returns a decorator that adds options, of which a command gets one object as its argument `name`."""
    names = [option.name for option in in_order(*options)(lambda: None).__click_params__]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            own = {each: values.pop(each) for each in names}
            return function(**{name: make(**own)}, **values)

        return in_order(*options)(run)  # type: ignore[no-any-return]

    return decorate


def in_order(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a decorator that adds options in the order in which they are to be listed."""

    def decorate(function: Any) -> Any:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def format_error(error: ConvserveError, context: click.Context) -> str:
    """Returns the text for stderr, in which a field that one of the command's parameters gives is shown as its flag."""
    text = str(error) or type(error).__name__
    if isinstance(error, InvalidArgumentError):
        lines = (f"{_flag(violation.field, context)}: {violation.description}" for violation in error.violations)
        text = "\n".join(lines) or text
    if isinstance(error, UnavailableError) and "target" in context.params:
        text = f"{context.params['target'] or default_target()}: {text}"
        text += f"\n{_WHICH_SERVER}" if "`convserve serve`" in text else ""
    head, *others = text.splitlines()
    return "\n".join([f"error: {head}", *(f"       {line}" for line in others)])


def _is_usage(error: ConvserveError, context: click.Context) -> bool:
    """Returns whether the command line itself is wrong, rather than a file, its content, or what a server has."""
    kinds = (InvalidRequestError, InvalidConfigurationError, InvalidTensorError)
    if not isinstance(error, kinds) or error.__cause__ is not None:  # which a file has that cannot be read or written
        return False
    fields = [violation.field for violation in error.violations]
    if isinstance(error, InvalidTensorError) and not {"kernel", "bias"}.isdisjoint(fields):  # what is in their files
        return False
    return all(_flag(field, context).startswith("--") for field in fields)


def _flag(field: str, context: click.Context) -> str:
    """Returns "--kernel-size" for "kernel_size", and "--kernel-initializer (seed)" for "kernel_initializer.seed".

    With --layer a field whose option was not given is the stored layer's, and stays as it is.
    """
    argument, _, within = field.replace("tls.", "tls_").partition(".")
    is_stored = bool(context.params.get("reference") or context.params.get("references"))
    for parameter in context.command.params:
        if is_stored and context.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT:
            continue
        if isinstance(parameter, click.Argument):
            flag, names = parameter.human_readable_name, {parameter.name}
        else:
            flag = max(parameter.opts, key=len)
            names = {parameter.name, flag.removeprefix("--").replace("-", "_")}
        if argument in names or (argument == "input" and parameter.name == "input_shape"):
            return f"{flag} ({within})" if within else flag
    return field
