"""What the options' values look like on the command line, and the Python values that they mean.

A function that raises click.BadParameter may be the type of an option: click says which option it was.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import click

from convserve.protocol.addresses import split_address
from convserve.protocol.call_arguments import LONGEST_S

Pair = tuple[int, int]
Limits = tuple[float, float]
Word = TypeVar("Word", Literal["own"], Literal["shared"])
Number = TypeVar("Number", int, float)

_MAX_CHANNELS = 10_000
"""More than can be looked at: a range of more is refused later, as it has numbers that no output has."""


def pair(text: str) -> int | Pair:
    """Returns 3 for "3", and (3, 5) for "3,5" and "3x5"."""
    sizes = _integers(text, "one integer, or two such as 3,5 or 3x5", lambda sizes: len(sizes) <= 2)
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def shape(text: str) -> tuple[int, ...]:
    """Returns (4, 600, 600, 3) for "4,600,600,3" and "4x600x600x3"."""
    return tuple(_integers(text, "dimensions such as 4,600,600,3"))


def padding(text: str) -> str | int | Pair | tuple[Pair, Pair]:
    """Returns Keras' word, PyTorch's amount or two, or ((top, bottom), (left, right)) for "top,bottom,left,right"."""
    if text.lower() in ("valid", "same"):
        return text.lower()
    expected = "valid, same, one amount, two, or four top,bottom,left,right such as 1,1,2,2"
    amounts = _integers(text, expected, lambda amounts: len(amounts) in (1, 2, 4))
    if len(amounts) < 4:
        return pair(text)
    top, bottom, left, right = amounts
    return (top, bottom), (left, right)


def limits_or(word: Word) -> Callable[[str], Limits | Word]:
    """Returns what reads (0.0, 255.0) from "0,255", and a word as it is."""
    return lambda text: word if text == word else limits(text, word)


def limits(text: str, word: str = "") -> Limits:
    """Returns (0.0, 255.0) for "0,255"; `word` is what else there might have been."""
    expected = f"two numbers LOW,HIGH such as 0,255{f', or {word}' if word else ''}"
    low, high = _numbers(
        text, float, expected, lambda ends: len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf
    )
    return low, high


def percentiles(text: str) -> Limits:
    """Returns (1.0, 99.0) for "1,99"."""
    expected = "two percentiles LOW,HIGH from 0 to 100 such as 1,99"
    low, high = _numbers(text, float, expected, lambda ends: len(ends) == 2 and 0 <= ends[0] < ends[1] <= 100)
    return low, high


def channels(text: str) -> list[int]:
    """Returns [0, 5, 64, 65, 66] for "0,5,64-66"."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (not dash or (last.isdecimal() and int(first) <= int(last)))):
            raise _refused("channels such as 0,5,64-127", text)
        chosen += range(int(first), min(int(last or first), int(first) + _MAX_CHANNELS) + 1)
    return chosen


def named_object(text: str) -> str | dict[str, Any]:
    """Returns Keras' name as it is, and a JSON object as a dictionary."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):
        raise _refused("""Keras' name, or JSON such as '{"class_name": "L2", "config": {"l2": 0.1}}'""", text) from None


def seconds(text: str, most: float = sys.float_info.max) -> float:
    """Returns a number of seconds above 0, at most a year."""
    expected = "a number of seconds above 0"
    (amount,) = _numbers(text, float, expected, lambda listed: len(listed) == 1 and 0 < listed[0] <= most)
    return min(amount, LONGEST_S)


def timeout(text: str) -> float:
    """Returns the same; for "inf" a year, which is for as long as it takes."""
    return seconds(text, math.inf)


def counts(text: str) -> list[int]:
    """Returns [1, 8] for "1,8"."""
    return _numbers(
        text, int, "numbers from 1 to 1000 such as 1,8", lambda listed: 1 <= min(listed) <= max(listed) <= 1000
    )


def rates(text: str) -> list[float]:
    """Returns [50.0, 200.0] for "50,200"."""
    expected = "calls per second, above 0, such as 50,200"
    return _numbers(text, float, expected, lambda listed: all(0 < rate <= 1e6 for rate in listed))


def metrics_url(text: str) -> str:
    """Returns a URL, and "http://host:9464/metrics" for "host:9464" and for one without a path."""
    is_url = text.startswith(("http://", "https://"))
    try:
        if is_url:
            parts = urlsplit(text)
            if not parts.hostname or parts.port == 0:  # which raises ValueError for what is no number of a port
                raise ValueError("it has no host, or no port")
        else:
            split_address(text)
    except ValueError as error:
        raise _refused("http://HOST:PORT/metrics or HOST:PORT", text, str(error)) from None
    if not is_url:
        return f"http://{text}/metrics"
    return text if parts.path.strip("/") else parts._replace(path="/metrics").geturl()


def _refused(expected: str, text: str, why: str = "") -> click.BadParameter:
    return click.BadParameter(f"expected {expected}. Received {text!r}{f': {why}' if why else ''}.")


def _numbers(
    text: str,
    number: Callable[[str], Number],
    expected: str,
    fit: Callable[[list[Number]], bool] = bool,
    further: str = ",",
) -> list[Number]:
    """Returns the numbers between commas, or what else; refuses others among them, and numbers that do not fit."""
    try:
        parts = str(text).replace(further, ",").split(",")  # an option's default is no text
        listed = [number(part) for part in parts]
    except ValueError:
        listed = []
    if not (listed and fit(listed)):
        raise _refused(expected, text)
    return listed


def _integers(text: str, expected: str, fit: Callable[[list[int]], bool] = bool) -> list[int]:
    return _numbers(text, int, expected, fit, "x")
