"""How a failure is told on the command line: in words, with each wrong field under the name of its flag."""

from __future__ import annotations

import argparse

from convserve.errors import ConvserveError, InvalidArgumentError, UnavailableError

_WHICH_SERVER = "`convserve serve` starts one here; --target or CONVSERVE_TARGET names another"


def told(error: BaseException, arguments: argparse.Namespace) -> str | None:
    """Returns the text for stderr, or None for a failure that nobody expected.

    Args:
        error: What was raised.
        arguments: The command's arguments; a field that one of them gives is shown as that flag.
    """
    if not isinstance(error, ConvserveError):
        return None
    text = str(error) or type(error).__name__
    if isinstance(error, InvalidArgumentError):
        text = "\n".join(f"{_flag(each.field, arguments)}: {each.description}" for each in error.violations) or text
    if isinstance(error, UnavailableError) and hasattr(arguments, "target"):
        text = f"no server answers at {arguments.target}: {text}\n{_WHICH_SERVER}"
    head, *others = text.splitlines()
    return "\n".join([f"error: {head}", *(f"       {line}" for line in others)])


def _flag(field: str, arguments: argparse.Namespace) -> str:
    """Returns "--kernel-size" for "kernel_size", and "--kernel-initializer (seed)" for "kernel_initializer.seed"."""
    argument, _, parameter = field.replace("tls.", "tls_").partition(".")
    if argument == "input":
        flag = "INPUT" if hasattr(arguments, "input") else "--input-shape"
    elif argument == "use_bias":
        flag = "--no-bias"
    else:
        flag = "--" + argument.replace("_", "-")
    if argument != "input" and not hasattr(arguments, argument):
        return field
    return f"{flag} ({parameter})" if parameter else flag
