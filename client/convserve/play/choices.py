"""What the page's controls offer, and how what they say is read. marimo's `mo.ui` is handed in as `ui`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from convserve.layers.arguments import FAMILIES
from convserve.play.convolution.settings import CHOICES, Matrix, resized
from convserve.tensors.codec import Array

PAIRS = ("kernel_size", "strides", "dilation_rate")
"""The settings that are a height and a width."""
PLACES = ("row", "column", "filter")


def dropdown(ui: Any, field: str, value: str) -> Any:
    """Returns a choice among what CHOICES has for a setting, at a value."""
    key = next(key for key, each in CHOICES[field].items() if each == value)
    return ui.dropdown(CHOICES[field], value=key, allow_select_none=False, full_width=True)


def parameters(field: str, name: str) -> str:
    """Returns what parameters a name has, with their defaults: "l2=0.01"; "" for one that has none."""
    member = FAMILIES[field].members.get(name)
    if member is None:
        return ""
    own = (each for each in dataclasses.fields(member) if each.name != "seed")
    return ", ".join(f"{each.name}={each.default!r}" for each in own)


def slider(ui: Any, low: int, high: int, value: int, label: str = "") -> Any:
    """Returns a slider that has a link's value too, where that lies outside."""
    return ui.slider(
        min(low, value), max(high, value), step=1, value=value, show_value=True, full_width=True, label=label
    )


def pair(ui: Any, low: int, high: int, value: tuple[int, int]) -> Any:
    """Returns two sliders, for the height and the width."""
    sides = zip(("height", "width"), value, strict=True)
    return ui.dictionary({side: slider(ui, low, high, each, side) for side, each in sides})


def padding_amounts(ui: Any, padding: str) -> Any:
    """Returns four numbers: the rows and columns of zeros around the input."""
    given = map(int, padding.split(",")) if "," in padding else [1, 1, 1, 1]
    sides = zip(("top", "bottom", "left", "right"), given, strict=True)
    return ui.dictionary({side: ui.number(step=1, value=each, full_width=True, label=side) for side, each in sides})


def padding_text(word: str, amounts: Mapping[str, float | None]) -> str:
    """Returns Settings' padding."""
    return word if word != "explicit" else ",".join(str(int(amount or 0)) for amount in amounts.values())


def matrix(ui: Any, values: Matrix) -> Any:
    """Returns a number to edit for each of a matrix, in rows."""
    return ui.array([ui.array([ui.number(step=0.01, value=value, full_width=True) for value in row]) for row in values])


def matrix_of(edited: Any) -> Matrix:
    """Returns the numbers of `matrix`; what was cleared is 0."""
    return tuple(tuple(float(value or 0) for value in row) for row in edited.value)


def with_matrix(matrices: tuple[Matrix, ...], index: int, changed: Matrix, filters: int) -> tuple[Matrix, ...]:
    """Returns the filters' numbers with one of them changed, all of its size, and no more of them than need be."""
    index = min(index, filters - 1)
    size = len(changed), len(changed[0])
    if index < len(matrices) or changed != resized(matrices[index % len(matrices)], *size):
        count = max(len(matrices), index + 1)
        listed = [resized(matrices[number % len(matrices)], *size) for number in range(count)]
        listed[index] = changed
        matrices = tuple(listed)
    return tuple(resized(each, *size) for each in matrices[:filters])


def pixel(ui: Any, maps: Array | None, kept: Mapping[str, int]) -> Any:
    """Returns the sliders of a pixel of the output, (height, width, channels), at what was kept of earlier ones.

    Without an output, where settings are refused, they stay where they are.
    """
    labels = ("row of the output", "column of the output", "filter")
    lasts = zip(_last_pixel(maps, kept).items(), labels, strict=True)
    return ui.dictionary(
        {name: slider(ui, 0, max(1, last), min(kept[name], last), label) for (name, last), label in lasts}
    )


def moved(values: Mapping[str, int], maps: Array | None, kept: Mapping[str, int]) -> dict[str, int]:
    """Returns where the sliders were moved; one that an output ends before its place was not."""
    last = _last_pixel(maps, kept)
    return {name: min(value, last[name]) for name, value in values.items() if value != min(kept[name], last[name])}


def _last_pixel(maps: Array | None, kept: Mapping[str, int]) -> dict[str, int]:
    sizes = [kept[name] + 1 for name in PLACES] if maps is None else maps.shape
    return {name: size - 1 for name, size in zip(PLACES, sizes, strict=True)}
