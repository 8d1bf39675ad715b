"""A layer's output as a labelled grid of feature maps, drawn with matplotlib.

Only matplotlib's object-oriented interface is used: nothing global changes for a caller who plots too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convserve.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[Any]

MOST_MAPS = 64
"""The most feature maps that one picture shows."""

_DPI = 120


def write_feature_maps(
    path: str | Path, pixels: Array, title: str, value_range: tuple[float, float] | None = None
) -> None:
    """Draws each channel as a map of its own, at most `MOST_MAPS`; what is not finite is grey.

    Args:
        path: The file to write, in the format that its suffix names.
        pixels: Shape (height, width, channels), float32 or float64.
        title: Text above the grid.
        value_range: The values at the ends of the colours, for all maps. None: each map is scaled by itself.

    Raises:
        MissingDependencyError: Without matplotlib.
        OSError: If the file cannot be written.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Drawing feature maps needs matplotlib: pip install 'convserve[plot]'. "
            "Outputs of 1 or 3 channels are drawn without it."
        ) from error
    height, width, channels = pixels.shape
    shown_maps = min(channels, MOST_MAPS)
    if shown_maps < channels:
        title += f"\nthe first {shown_maps} of {channels} filters"
    columns, rows, cell_width, cell_height = _grid(shown_maps, height, width)
    head = 0.52 if "\n" in title else 0.34
    label = 0.2
    gap = 0.08
    figure_width = max(gap + columns * (cell_width + gap), 3.6)  # wide enough for the title
    figure_height = head + rows * (label + cell_height) + gap
    figure = Figure(figsize=(figure_width, figure_height), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.text(gap / figure_width, 1 - 0.1 / figure_height, title, fontsize=10, va="top", ha="left")
    colours = colormaps["viridis"].with_extremes(bad="0.75")
    for index in range(shown_maps):
        row, column = divmod(index, columns)
        left = gap + column * (cell_width + gap)
        bottom = figure_height - head - (row + 1) * (label + cell_height)
        axes = figure.add_axes(
            (left / figure_width, bottom / figure_height, cell_width / figure_width, cell_height / figure_height)
        )
        _draw_map(axes, pixels[..., index], index, colours, cell_width, value_range)
    figure.savefig(path)


def finite_range(values: Array) -> tuple[float, float]:
    """Returns the least and the greatest finite value, or NaN twice if there is none."""
    low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high):  # then all are, and no copy of what is finite is needed
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _grid(maps: int, height: int, width: int) -> tuple[int, int, float, float]:
    """Returns columns, rows, and a cell's width and height in inches: few empty cells, and as wide as a screen."""
    # A map of 1 x 1000 would otherwise be a line: cells are at most 4 times as long as wide, and maps are stretched.
    aspect = min(max(width / height, 0.25), 4.0)

    def badness(columns: int) -> float:
        rows = math.ceil(maps / columns)
        empty = columns * rows - maps
        return abs(math.log(columns * aspect / rows / 1.2)) + 4 * empty / maps

    columns = min(range(1, maps + 1), key=badness)
    rows = math.ceil(maps / columns)
    longest = min(4.0, 11.0 / max(columns * min(aspect, 1.0), rows * min(1 / aspect, 1.0)))
    cell_width = longest * min(aspect, 1.0)
    return columns, rows, cell_width, cell_width / aspect


def _draw_map(
    axes: Axes,
    values: Array,
    index: int,
    colours: Any,
    cell_width: float,
    value_range: tuple[float, float] | None,
) -> None:
    low, high = finite_range(values)
    if math.isnan(low):
        span = "not finite"
    elif low == high:
        span = f"all {low:.3g}"
        low, high = low - 1, high + 1  # the middle colour: the ends would claim a least or a greatest value
    else:
        span = f"{low:.3g} to {high:.3g}"
    if value_range is not None:
        low, high = value_range
    axes.set_axis_off()
    # imshow keeps several copies of what it is given, so a large map is averaged down to about twice its cell first.
    drawn = _averaged(np.where(np.isfinite(values), values, np.nan), round(2 * cell_width * _DPI))
    axes.imshow(drawn, cmap=colours, vmin=low, vmax=high, aspect="auto")
    size = 7 if cell_width > 1.2 else 6
    axes.text(0, 1, f"filter {index}", transform=axes.transAxes, fontsize=size, va="bottom", ha="left")
    if cell_width > 1.2:
        axes.text(1, 1, span, transform=axes.transAxes, fontsize=6, va="bottom", ha="right", color="0.4")


def _averaged(values: Array, most_columns: int) -> Array:
    """Returns a map averaged over square blocks so that it has about `most_columns` columns or fewer."""
    block = max(1, values.shape[1] // most_columns)
    block = min(block, *values.shape)
    if block == 1:
        return values
    rows, columns = (size // block for size in values.shape)
    blocks = values[: rows * block, : columns * block].reshape(rows, block, columns, block)
    return np.asarray(blocks.mean(axis=(1, 3)))
