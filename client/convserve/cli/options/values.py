"""What the options' values look like on the command line, and the Python values that they mean."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any, Literal

Pair = tuple[int, int]

_MAX_CHANNELS = 10_000
"""More than can be looked at: a range of more is refused later, as it has numbers that no output has."""


def pair(text: str) -> int | Pair:
    """Returns 3 for "3", and (3, 5) for "3,5" and "3x5"."""
    numbers = _integers(text)
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"expected one integer, or two such as 3,5 or 3x5. Received {text!r}.")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def shape(text: str) -> tuple[int, ...]:
    """Returns (4, 600, 600, 3) for "4,600,600,3" and "4x600x600x3"."""
    numbers = _integers(text)
    if not numbers:
        raise argparse.ArgumentTypeError(f"expected dimensions such as 4,600,600,3. Received {text!r}.")
    return tuple(numbers)


def value_range(text: str) -> tuple[float, float] | Literal["shared"]:
    """Returns (0.0, 255.0) for "0,255", and the word for "shared"."""
    if text == "shared":
        return "shared"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"expected two numbers LOW,HIGH such as 0,255, or shared. Received {text!r}.")
    return low, high


def channels(text: str) -> list[int]:
    """Returns [0, 5, 64, 65, 66] for "0,5,64-66"."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (not dash or last.isdecimal())):
            raise argparse.ArgumentTypeError(f"expected channels such as 0,5,64-127. Received {text!r}.")
        found += range(int(first), min(int(last or first), int(first) + _MAX_CHANNELS) + 1)
    return found


def padding(text: str) -> str | tuple[Pair, Pair]:
    """Returns Keras' word, or ((top, bottom), (left, right)) for "top,bottom,left,right"."""
    if text.lower() in ("valid", "same"):
        return text.lower()
    numbers = _integers(text)
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(
            f"expected valid, same, or four amounts top,bottom,left,right such as 1,1,2,2. Received {text!r}."
        )
    top, bottom, left, right = numbers
    return (top, bottom), (left, right)


def named_object(text: str) -> str | dict[str, Any]:
    """Returns Keras' name as it is, and a JSON object as a dictionary."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"""expected Keras' name, or JSON such as '{{"class_name": "L2", "config": {{"l2": 0.1}}}}'. """
            f"Received {text!r}: {error}."
        ) from None
    return found  # type: ignore[no-any-return]


def _integers(text: str) -> list[int]:
    """Returns the integers between commas or "x", or an empty list if something else is among them."""
    try:
        return [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        return []


def seconds(text: str) -> float:
    """Returns a number of seconds above 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0. Received {text!r}.")
    return found
