"""What the page's controls offer, and how what they say is read. marimo's `mo.ui` is handed in as `ui`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from convserve.files.images import INPUT_PICTURE_SUFFIXES
from convserve.layers.arguments import FAMILIES
from convserve.layers.classic_kernels import CLASSIC_KERNELS
from convserve.play.convolution.settings import Matrix, resized
from convserve.tensors.codec import Array

PICTURES = {
    "a photograph": "photo",
    "a checkerboard": "checkerboard",
    "a digit": "digit",
    "numbers of your own": "numbers",
    "a picture of your own": "upload",
}
KERNELS = {
    "drawn by kernel_initializer": "initializer",
    "numbers of your own": "numbers",
    **{f"{name}: {kernel.description}": name for name, kernel in CLASSIC_KERNELS.items()},
}


PLACES = ("row", "column", "filter")
SUFFIXES = list(INPUT_PICTURE_SUFFIXES)
AS_THEY_ARE = (
    "picture", "size", "grey", "filters", "data_format", "groups", "use_bias", "kernel", "name", "dtype", "trainable",
    "input_shape",
)  # fmt: skip
"""The settings that are what their control says."""


def dropdown(ui: Any, options: Mapping[str, str] | Sequence[str], value: str) -> Any:
    """Returns a choice, at a value; a mapping says under which text each value is offered."""
    keys = options.items() if isinstance(options, Mapping) else zip(options, options, strict=True)
    key = next(key for key, each in keys if each == value)
    return ui.dropdown(options, value=key, allow_select_none=False, full_width=True)


def names(field: str) -> dict[str, str]:
    """Returns the Keras names that a parameter may have, None first where that is one."""
    none = {} if field.endswith("initializer") else {"None": ""}
    known = sorted({member.keras_name for member in FAMILIES[field].members.values()})
    return none | {name: name for name in known}


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
    given = [int(word) for word in padding.split(",")] if "," in padding else [1, 1, 1, 1]
    sides = zip(("top", "bottom", "left", "right"), given, strict=True)
    return ui.dictionary({side: ui.number(step=1, value=each, full_width=True, label=side) for side, each in sides})


def padding_text(word: str, amounts: Mapping[str, float | None]) -> str:
    """Returns Settings' padding."""
    return word if word != "explicit" else ",".join(str(int(amount or 0)) for amount in amounts.values())


def matrix(ui: Any, values: Matrix) -> Any:
    """Returns a number to edit for each of a matrix, by (row, column) as "row,column"."""
    return ui.dictionary(
        {
            f"{row},{column}": ui.number(step=0.01, value=value, full_width=True)
            for row, listed in enumerate(values)
            for column, value in enumerate(listed)
        }
    )


def matrix_of(edited: Any) -> Matrix:
    """Returns the numbers of `matrix`; what was cleared is 0."""
    rows: dict[str, list[float]] = {}
    for place, value in edited.value.items():
        rows.setdefault(place.partition(",")[0], []).append(float(value or 0))
    return tuple(map(tuple, rows.values()))


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
    return ui.dictionary(
        {
            name: slider(
                ui, 0, max(1, last), min(kept[name], last), name if name == "filter" else f"{name} of the output"
            )
            for name, last in _last_pixel(maps, kept).items()
        }
    )


def moved(values: Mapping[str, int], maps: Array | None, kept: Mapping[str, int]) -> dict[str, int]:
    """Returns where the sliders were moved; one that an output ends before its place was not."""
    last = _last_pixel(maps, kept)
    return {name: min(value, last[name]) for name, value in values.items() if value != min(kept[name], last[name])}


def _last_pixel(maps: Array | None, kept: Mapping[str, int]) -> dict[str, int]:
    sizes = [kept[name] + 1 for name in PLACES] if maps is None else maps.shape
    return {name: size - 1 for name, size in zip(PLACES, sizes, strict=True)}
