"""What the options' values look like on the command line, and the Python values that they mean.

A function that raises click.BadParameter may be the type of an option: click says which option it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import click

from convserve.protocol.addresses import split_address
from convserve.protocol.call_arguments import LONGEST_S

Pair = tuple[int, int]
Number = TypeVar("Number", int, float)

_MAX_CHANNELS = 10_000
"""More than can be looked at: a range of more is refused later, as it has numbers that no output has."""


def pair(text: str) -> int | Pair:
    """Returns 3 for "3", and (3, 5) for "3,5" and "3x5"."""
    sizes = _integers(text)
    if len(sizes) not in (1, 2):
        raise _refused("one integer, or two such as 3,5 or 3x5", text)
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def shape(text: str) -> tuple[int, ...]:
    """Returns (4, 600, 600, 3) for "4,600,600,3" and "4x600x600x3"."""
    dimensions = _integers(text)
    if not dimensions:
        raise _refused("dimensions such as 4,600,600,3", text)
    return tuple(dimensions)


def padding(text: str) -> str | int | Pair | tuple[Pair, Pair]:
    """Returns Keras' word, PyTorch's amount or two, or ((top, bottom), (left, right)) for "top,bottom,left,right"."""
    if text.lower() in ("valid", "same"):
        return text.lower()
    amounts = _integers(text)
    if len(amounts) in (1, 2):
        return pair(text)
    if len(amounts) != 4:
        raise _refused("valid, same, one amount, two, or four top,bottom,left,right such as 1,1,2,2", text)
    top, bottom, left, right = amounts
    return (top, bottom), (left, right)


def value_range(text: str) -> tuple[float, float] | Literal["shared"]:
    """Returns (0.0, 255.0) for "0,255", and the word for "shared"."""
    return "shared" if text == "shared" else limits(text, "shared")


def own_range(text: str) -> tuple[float, float] | Literal["own"]:
    """Returns (0.0, 255.0) for "0,255", and the word for "own"."""
    return "own" if text == "own" else limits(text, "own")


def limits(text: str, word: str = "") -> tuple[float, float]:
    """Returns (0.0, 255.0) for "0,255"; `word` is what else there might have been."""
    ends = _numbers(text, float)
    if len(ends) != 2 or not -math.inf < ends[0] < ends[1] < math.inf:
        raise _refused(f"two numbers LOW,HIGH such as 0,255{f', or {word}' if word else ''}", text)
    return ends[0], ends[1]


def percentiles(text: str) -> tuple[float, float]:
    """Returns (1.0, 99.0) for "1,99"."""
    ends = _numbers(text, float)
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 100:
        raise _refused("two percentiles LOW,HIGH from 0 to 100 such as 1,99", text)
    return ends[0], ends[1]


def channels(text: str) -> list[int]:
    """Returns [0, 5, 64, 65, 66] for "0,5,64-66"."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (not dash or last.isdecimal())):
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


def seconds(text: str) -> float:
    """Returns a number of seconds above 0, at most a year."""
    amounts = _numbers(str(text), float)
    if len(amounts) != 1 or not 0 < amounts[0] < math.inf:
        raise _refused("a number of seconds above 0", text)
    return min(amounts[0], LONGEST_S)


def timeout(text: str) -> float:
    """Returns the same; for "inf" a year, which is for as long as it takes."""
    return LONGEST_S if _numbers(str(text), float) == [math.inf] else seconds(text)


def counts(text: str) -> list[int]:
    """Returns [1, 8] for "1,8"."""
    listed = _numbers(text, int)
    if not listed or min(listed) < 1 or max(listed) > 1000:
        raise _refused("numbers from 1 to 1000 such as 1,8", text)
    return listed


def rates(text: str) -> list[float]:
    """Returns [50.0, 200.0] for "50,200"."""
    listed = _numbers(text, float)
    if not listed or not all(0 < rate <= 1e6 for rate in listed):
        raise _refused("calls per second, above 0, such as 50,200", text)
    return listed


def metrics_url(text: str) -> str:
    """Returns a URL as it is, and "http://host:9464/metrics" for "host:9464"."""
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
    return text if is_url else f"http://{text}/metrics"


def _refused(expected: str, text: str, why: str = "") -> click.BadParameter:
    return click.BadParameter(f"expected {expected}. Received {text!r}{f': {why}' if why else ''}.")


def _numbers(text: str, number: Callable[[str], Number]) -> list[Number]:
    """Returns the numbers between commas, or an empty list if something else is among them."""
    try:
        return [number(part) for part in text.split(",")]
    except ValueError:
        return []


def _integers(text: str) -> list[int]:
    return _numbers(text.replace("x", ","), int)
