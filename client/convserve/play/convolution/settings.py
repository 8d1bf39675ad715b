"""Settings: what all controls of the page say, as one value, which a link carries."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from convserve.errors import InvalidRequestError, short_repr
from convserve.files.reading import parsed
from convserve.layers.arguments import DTYPE_POLICIES, FAMILIES, Pair
from convserve.layers.classic_kernels import CLASSIC_KERNELS
from convserve.layers.conv2d import Conv2D

SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MAX_GRID = 8
"""The most rows and columns of a grid of numbers."""

Matrix = tuple[tuple[float, ...], ...]
OBJECTS = tuple(FAMILIES)
"""The parameters whose values are a name, perhaps with parameters of its own."""
_MOST = {"filters": 256, "kernel_size": 11, "strides": 512, "padding": 64, "dilation_rate": 6, "groups": 1024}
"""The largest values that a link may have: what a page can show and draw."""


def _names(field: str) -> dict[str, str]:
    """Returns the Keras names that a parameter may have, None first where that is one."""
    none = {} if field.endswith("initializer") else {"None": ""}
    return none | {name: name for name in sorted({member.keras_name for member in FAMILIES[field].members.values()})}


CHOICES = {
    "picture": {
        "a photograph": "photo",
        "a checkerboard": "checkerboard",
        "a digit": "digit",
        "numbers of your own": "numbers",
        "a picture of your own": "upload",
    },
    "kernel": {
        "drawn by kernel_initializer": "initializer",
        "numbers of your own": "numbers",
        **{f"{name}: {kernel.description}": name for name, kernel in CLASSIC_KERNELS.items()},
    },
    "padding": {name: name for name in ("valid", "same", "explicit")},
    "data_format": {name: name for name in ("channels_last", "channels_first")},
    "dtype": {name: name for name in DTYPE_POLICIES},
    **{field: _names(field) for field in OBJECTS},
}
"""The settings that are one of several: the text under which each value is offered. Those of OBJECTS are names."""


@dataclass(frozen=True)
class Settings:
    """What the controls say. Conv2D's parameters have its names; sizes are (height, width).

    Attributes:
        picture: One of CHOICES, as `kernel`, `data_format`, `dtype` and the names of OBJECTS are.
        size: Pixels of the picture's longer side.
        grey: Whether a picture of colours is made grey, so that it has one channel.
        grid: The input's numbers where `picture` is "numbers".
        kernel: "initializer", "numbers", or the name of a classic kernel.
        numbers: Where `kernel` is "numbers": of each filter a matrix, the same for all of its input channels. Further
            filters repeat them.
        seed: For every initializer that has none of its own.
        padding: "valid", "same", or "top,bottom,left,right".
        activation: As all of OBJECTS "" for None, a Keras name, or a name with parameters: "l2(l2=0.1)".
        input_shape: "" for None, or dimensions without the batch axis: "600,600,3".
        shared_range: Whether all feature maps are drawn on one scale.
        filter: The feature map whose pixel's sum is written out.
        row: The pixel's row in the output.
        column: Its column.
    """

    picture: str = "photo"
    size: int = 96
    grey: bool = False
    grid: Matrix = tuple(tuple(float(5 * row + column) for column in range(5)) for row in range(5))
    filters: int = 4
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: str = "valid"
    data_format: str = "channels_last"
    dilation_rate: Pair = (1, 1)
    groups: int = 1
    activation: str = ""
    use_bias: bool = True
    kernel: str = "initializer"
    numbers: tuple[Matrix, ...] = (((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0)),)
    seed: int = 0
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"
    kernel_regularizer: str = ""
    bias_regularizer: str = ""
    activity_regularizer: str = ""
    kernel_constraint: str = ""
    bias_constraint: str = ""
    name: str = ""
    dtype: str = "float32"
    trainable: bool = True
    input_shape: str = ""
    shared_range: bool = False
    filter: int = 0
    row: int = 40
    column: int = 36

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Settings:
        """Returns the settings that a link carries; what it leaves out has its default, and other words are ignored.

        Raises InvalidRequestError for a value that cannot be read, naming the field.
        """
        return cls(
            **{
                field.name: _read(field.name, field.default, query[field.name])
                for field in dataclasses.fields(cls)
                if field.name in query
            }
        )

    def to_query(self) -> dict[str, str]:
        """Returns the words of a link: those that are not the defaults."""
        changed = (field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default)
        return {field.name: _text(getattr(self, field.name)) for field in changed}

    def conv2d(self, channels: int, kernel_size: Pair | None = None) -> Conv2D:
        """Returns the configuration for an input of so many channels.

        A classic kernel filters each channel by itself, so that filters and groups are both the channels, and
        `kernel_size` is the kernel's.

        Raises InvalidArgumentError as Conv2D does.
        """
        parameters: dict[str, Any] = {name: getattr(self, name) for name in inspect.signature(Conv2D).parameters}
        if kernel_size is not None:
            parameters |= {"filters": channels, "groups": channels, "kernel_size": kernel_size}
        parameters |= {name: named(getattr(self, name), name) for name in OBJECTS}
        if self.padding not in ("valid", "same"):
            parameters["padding"] = _explicit(self.padding)
        parameters["name"] = self.name or None
        parameters["input_shape"] = _dimensions(self.input_shape)
        return Conv2D(**parameters).with_seed(self.seed)

    def differences(self, other: Settings) -> list[tuple[str, str, str]]:
        """Returns what differs from other settings, but for the pixel: the name, and both values as text."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("filter", "row", "column")]
        values = [(name, *(_text(getattr(each, name)) or "None" for each in (self, other))) for name in names]
        return [(name, mine, others) for name, mine, others in values if mine != others]


def named(text: str, field: str) -> dict[str, Any] | None:
    """Returns None for "", and for "l2(l2=0.1)" a dictionary with `class_name` and `config`.

    Raises InvalidRequestError for anything else.
    """
    if not text:
        return None
    try:
        tree = parsed(lambda: ast.parse(text, mode="eval")).body
        if isinstance(tree, ast.Name):
            return {"class_name": tree.id, "config": {}}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            config = {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords if word.arg}
            if len(config) == len(tree.keywords):
                return {"class_name": tree.func.id, "config": config}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise InvalidRequestError.for_field(field, "a name, and parameters as NAME=VALUE, ...", short_repr(text))


def text_of(name: str, parameters: str) -> str:
    """Returns the text of a name that was chosen and parameters that were typed: "l2(l2=0.1)"."""
    return f"{name}({parameters.strip()})" if name and parameters.strip() else name


def parts_of(text: str) -> tuple[str, str]:
    """Returns the name and the parameters that a text of `text_of` has."""
    name, _, parameters = text.partition("(")
    return name, parameters.removesuffix(")")


def resized(matrix: Matrix, rows: int, columns: int) -> Matrix:
    """Returns a matrix of another size: cut off at the bottom and the right, or continued there with 0."""
    padded = [[*row, *[0.0] * columns][:columns] for row in matrix] + [[0.0] * columns for _ in range(rows)]
    return tuple(map(tuple, padded[:rows]))


def exact(number: float) -> str:
    """Returns the shortest text that means this very number."""
    return repr(number).removesuffix(".0")


def _explicit(text: str) -> tuple[Pair, Pair]:
    top, bottom, left, right = _integers("padding", text, 4)
    return (top, bottom), (left, right)


def _dimensions(text: str) -> tuple[int | None, ...] | None:
    words = text.strip().strip("()").split(",")
    try:
        sizes = tuple(None if word.strip() == "None" else int(word) for word in words if word.strip())
    except ValueError:
        expected = "dimensions without the batch axis, such as 600,600,3"
        raise InvalidRequestError.for_field("input_shape", expected, short_repr(text)) from None
    return sizes or None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        mark = "|" if isinstance(value[0][0], tuple) else ";"
        return mark.join(map(_text, value))
    return ",".join(map(exact, value)) if isinstance(value, tuple) else str(value)


def _read(name: str, default: Any, text: str) -> Any:
    if isinstance(default, bool):
        return _one_of(name, ("yes", "no"), text) == "yes"
    if name == "size":
        return int(_one_of(name, map(str, SIZES), text))
    if isinstance(default, int):
        return _integers(name, text, 1)[0]
    if name == "grid":
        return _matrix(name, text, MAX_GRID)
    if name == "numbers":
        return tuple(_matrix(name, part, _MOST["kernel_size"]) for part in text.split("|"))
    if isinstance(default, tuple):
        return _integers(name, text, len(default))
    if name == "padding":
        if text not in ("valid", "same"):
            _explicit(text)
    elif name in CHOICES:
        _one_of(name, CHOICES[name].values(), (parts_of(text)[0] if name in OBJECTS else "") or text)
    return text


def _one_of(name: str, values: Iterable[str], text: str) -> str:
    known = list(values)
    if text not in known:
        raise InvalidRequestError.for_field(name, f"one of {', '.join(filter(None, known))}", short_repr(text))
    return text


def _integers(name: str, text: str, count: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    most = _MOST.get(name, 2**31 - 1)
    if len(numbers) != count or not all(-most <= number <= most for number in numbers):
        words = "a whole number" if count == 1 else f"{count} whole numbers with commas between,"
        raise InvalidRequestError.for_field(name, f"{words} of at most {most}", short_repr(text))
    return numbers


def _matrix(name: str, text: str, most: int) -> Matrix:
    try:
        rows = tuple(tuple(float(word) for word in row.split(",")) for row in text.split(";"))
    except ValueError:
        rows = ()
    is_finite = all(math.isfinite(number) for row in rows for number in row)
    if not is_finite or len({len(row) for row in rows}) != 1 or max(len(rows), len(rows[0])) > most:
        expected = "rows of as many numbers each, such as 1,0;0,1"
        raise InvalidRequestError.for_field(name, expected, short_repr(text))
    return rows
