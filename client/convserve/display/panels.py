"""Labelled panels of pixels in a grid, drawn with matplotlib, and beside them one that they came from.

Only matplotlib's object-oriented interface is used: nothing global changes for a caller who plots too. This is the one
module that imports matplotlib for pictures of layers; it is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.errors import MissingDependencyError

try:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError(
        f"Drawing feature maps and kernels needs matplotlib ({error}): pip install 'convserve[plot]'. "
        "`convserve conv2d --picture` draws outputs of 1 or 3 channels without it."
    ) from error

Array = npt.NDArray[Any]
Place = tuple[float, float, float, float]
"""Left, bottom, width, height."""

_DPI = 120
# Inches.
_LABEL = 0.2
_GAP = 0.08
_LARGEST = 4.0
_MIN_WIDTH = 3.6  # in which a title has room


@dataclass(frozen=True)
class Panel:
    """One picture with a line above it.

    Attributes:
        label: The line's left end.
        values: (height, width), drawn in colours, what is NaN in grey; or (height, width, 3), red, green and blue from
            0 to 1.
        low: The value at the dark end of the colours.
        high: The value at their bright end.
        note: The line's right end; left out where the panel is small.
        colours: The name of matplotlib's colour map.
    """

    label: str
    values: Array
    low: float = 0.0
    high: float = 1.0
    note: str = ""
    colours: str = "viridis"


class ShownFigure(Figure):
    """A figure that notebooks show also where nobody has imported pyplot, which would teach them."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


def draw(
    panels: Sequence[Panel],
    title: str,
    *,
    columns: int | None = None,
    longest: float = _LARGEST,
    beside: Panel | None = None,
    scale: Panel | None = None,
) -> ShownFigure:
    """Returns a figure of panels of one size.

    Args:
        panels: At least one, row by row.
        title: Text above them, of one or more lines.
        columns: How many stand in a row. None: what fills a screen best.
        longest: The most inches of a panel's longer side.
        beside: What stands to their left, in its own size.
        scale: One of the panels, whose colours hold for all: they are explained under the title.
    """
    height, width = panels[0].values.shape[:2]
    aspect = _aspect(height, width)
    columns = _columns(len(panels), aspect) if columns is None else columns
    rows = math.ceil(len(panels) / columns)
    longest = min(longest, 11.0 / max(columns * min(aspect, 1.0), rows * min(1 / aspect, 1.0)))
    cell_width = longest * min(aspect, 1.0)
    cell_height = cell_width / aspect
    grid_height = rows * (_LABEL + cell_height)
    beside_width, beside_height = (0.0, 0.0) if beside is None else _beside_size(beside, grid_height - _LABEL)
    left = _GAP if beside is None else beside_width + 3 * _GAP
    head = 0.34 + 0.18 * title.count("\n") + (0.0 if scale is None else 0.2)
    size = (
        max(left + columns * (cell_width + _GAP), _MIN_WIDTH),
        head + max(grid_height, _LABEL + beside_height) + _GAP,
    )
    figure = ShownFigure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.text(_GAP / size[0], 1 - 0.1 / size[1], title, fontsize=10, va="top", ha="left")
    if scale is not None:
        _draw_scale(figure, scale, size[1] - head + 0.08)
    if beside is not None:
        _draw_panel(figure, beside, (_GAP, size[1] - head - _LABEL - beside_height, beside_width, beside_height))
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        bottom = size[1] - head - (row + 1) * (_LABEL + cell_height)
        _draw_panel(figure, panel, (left + column * (cell_width + _GAP), bottom, cell_width, cell_height))
    return figure


def _aspect(height: int, width: int) -> float:
    """Returns width / height; a map of 1 x 1000 would be a line: it is stretched to at most 4 times as long as wide."""
    return min(max(width / height, 0.25), 4.0)


def _columns(panels: int, aspect: float) -> int:
    """Returns how many to put into a row: few empty cells, and as wide as a screen."""

    def badness(columns: int) -> float:
        rows = math.ceil(panels / columns)
        empty = columns * rows - panels
        return abs(math.log(columns * aspect / rows / 1.2)) + 4 * empty / panels

    return min(range(1, panels + 1), key=badness)


def _beside_size(panel: Panel, room: float) -> tuple[float, float]:
    """Returns the width and height of what stands beside a grid: as high as that, within what is good to look at."""
    height, width = panel.values.shape[:2]
    aspect = _aspect(height, width)
    tall = min(max(room, 1.0), _LARGEST, _LARGEST / aspect)
    return tall * aspect, tall


def _draw_panel(figure: ShownFigure, panel: Panel, place: Place) -> None:
    """Draws a panel into a place in inches."""
    axes = figure.add_axes(_share(figure, place))
    axes.set_axis_off()
    width = place[2]
    # imshow keeps several copies of what it is given, so a large map is averaged down to about twice its cell first.
    drawn = _averaged(panel.values, round(2 * width * _DPI))
    colours = colormaps[panel.colours].with_extremes(bad="0.75")
    axes.imshow(drawn, cmap=colours, vmin=panel.low, vmax=panel.high, aspect="auto")
    size = 7 if width > 1.2 else 6
    axes.text(0, 1, panel.label, transform=axes.transAxes, fontsize=size, va="bottom", ha="left")
    if width > 1.2:
        axes.text(1, 1, panel.note, transform=axes.transAxes, fontsize=6, va="bottom", ha="right", color="0.4")


def _draw_scale(figure: ShownFigure, panel: Panel, bottom: float) -> None:
    """Draws the colours from the least to the greatest value as a bar between the two."""
    text_width, bar_width = 0.55, 1.2
    axes = figure.add_axes(_share(figure, (_GAP + text_width, bottom, bar_width, 0.09)))
    axes.set_axis_off()
    axes.imshow(np.linspace(0, 1, 128)[np.newaxis], cmap=colormaps[panel.colours], aspect="auto")
    for x, align, value in ((-0.04, "right", panel.low), (1.04, "left", panel.high)):
        axes.text(x, 0.4, f"{value:.3g}", transform=axes.transAxes, fontsize=7, va="center", ha=align)


def _share(figure: ShownFigure, place: Place) -> Place:
    """Returns a place in inches as shares of a figure."""
    width, height = figure.get_size_inches()
    return place[0] / width, place[1] / height, place[2] / width, place[3] / height


def _averaged(values: Array, most_columns: int) -> Array:
    """Returns pixels averaged over square blocks so that there are about `most_columns` columns or fewer."""
    block = min(max(1, values.shape[1] // most_columns), *values.shape[:2])
    if block == 1:
        return values
    rows, columns = (size // block for size in values.shape[:2])
    blocks = values[: rows * block, : columns * block].reshape(rows, block, columns, block, *values.shape[2:])
    return np.asarray(blocks.mean(axis=(1, 3)))
