"""Failures in words, with each wrong field under the name of its flag."""

from __future__ import annotations

import click

from convserve.errors import ConvserveError, InvalidArgumentError, UnavailableError

_WHICH_SERVER = "`convserve serve` starts one here; --target or CONVSERVE_TARGET names another"


def format_error(error: ConvserveError, context: click.Context) -> str:
    """Returns the text for stderr, in which a field that one of the command's parameters gives is shown as its flag."""
    text = str(error) or type(error).__name__
    if isinstance(error, InvalidArgumentError):
        lines = (f"{_flag(violation.field, context)}: {violation.description}" for violation in error.violations)
        text = "\n".join(lines) or text
    if isinstance(error, UnavailableError) and (connection := context.meta.get("convserve.target")):
        text = f"no server answers at {connection}: {text}\n{_WHICH_SERVER}"
    head, *others = text.splitlines()
    return "\n".join([f"error: {head}", *(f"       {line}" for line in others)])


def _flag(field: str, context: click.Context) -> str:
    """Returns "--kernel-size" for "kernel_size", and "--kernel-initializer (seed)" for "kernel_initializer.seed"."""
    argument, _, within = field.replace("tls.", "tls_").partition(".")
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument):
            flag, names = parameter.human_readable_name, {parameter.name}
        else:
            flag = max(parameter.opts, key=len)
            names = {parameter.name, flag.removeprefix("--").replace("-", "_")}
        if argument in names or (argument == "input" and parameter.name == "input_shape"):
            return f"{flag} ({within})" if within else flag
    return field
