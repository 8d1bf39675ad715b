"""Figures of feature maps, pictures and kernels, by matplotlib, which is imported with this module and not before.

pyplot stays out, so nothing global changes for a caller who plots too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.display.pixels import MAX_MAPS, ValueRange, brightness, chosen, finite_range, is_picture
from convserve.errors import MissingDependencyError, printable
from convserve.tensors.codec import Array

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError(
        f"Drawing feature maps and kernels needs matplotlib ({error}): pip install 'convserve[plot]'. "
        "`convserve conv2d --picture` draws outputs of 1 or 3 channels without it."
    ) from error

# Inches.
_MAX_GRID = 11.0
_MAX_PANEL = 4.0
_LABEL_HEIGHT = 0.22
_CHARACTER_WIDTH = 0.085


@dataclass(frozen=True)
class Panel:
    """One image of a figure, with its title and the values at the ends of its colour map."""

    title: str
    values: Array
    """(height, width), drawn grey where not finite; or (height, width, 3), colours from 0 to 1."""
    low: float = 0.0
    high: float = 1.0
    note: str = ""
    cmap: str = "viridis"

    @property
    def aspect(self) -> float:
        """Width / height as drawn: a map of 1 x 1000 would be a line, so it is stretched."""
        height, width = self.values.shape[:2]
        return float(min(max(width / height, 0.25), 4.0))


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot too."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


def draw_output(
    pixels: Array, title: str, channels: Sequence[int] | None, value_range: ValueRange, beside: Array | None
) -> NotebookFigure:
    """Returns a figure of an output, 1 or 3 channels as a picture unless they are named, others as a grid of maps.

    `pixels` and `beside`, the input, are of shape (height, width, channels), float32 or float64.
    """
    left = None
    if beside is not None and is_picture(beside.shape[-1]):
        left = _picture("input", beside, None)
    elif beside is not None:
        left = _map(f"input, mean of {beside.shape[-1]} channels", beside.mean(axis=-1), None)
    count = pixels.shape[-1]
    if channels is None and is_picture(count):
        limits = value_range if isinstance(value_range, tuple) else None
        return draw_panels([_picture("output", pixels, limits)], title, beside=left)
    numbers = chosen(channels, count, MAX_MAPS, "channels")
    if len(numbers) < count:
        first = "the first " if numbers == list(range(len(numbers))) else ""
        title += f"\n{first}{len(numbers)} of {count} filters"
    shared = _distinct(*finite_range(pixels[..., numbers])) if value_range == "shared" else value_range
    panels = [_map(f"filter {number}", pixels[..., number], shared) for number in numbers]
    return draw_panels(panels, title, beside=left, colorbar=shared is not None)


def draw_panels(
    panels: Sequence[Panel],
    title: str,
    *,
    columns: int | None = None,
    max_inches: float = _MAX_PANEL,
    beside: Panel | None = None,
    colorbar: bool = False,
) -> NotebookFigure:
    """Returns a figure of panels of one size, row by row, and of one of another size at their left.

    `columns` fills a screen by default; `max_inches` bounds a panel's longer side; `colorbar` explains the colours of
    panels that share their limits.
    """
    aspect, count = panels[0].aspect, len(panels)
    if columns is None:  # the form of a screen, and few empty places
        columns = min(
            range(1, count + 1),
            key=lambda number: abs(number * aspect - 1.2 * math.ceil(count / number)) + 2 * (-count % number),
        )
    rows = math.ceil(count / columns)
    width = min(max_inches, max_inches * aspect, _MAX_GRID / columns, _MAX_GRID * aspect / rows)
    grid_width = columns * (width + 0.1) * (1.05 if colorbar else 1.0) + (0.4 if colorbar else 0.0)
    grid_height = rows * (width / aspect + _LABEL_HEIGHT)
    left_width, left_height = 0.0, 0.0
    if beside is not None:
        left_height = min(_MAX_PANEL, _MAX_PANEL / beside.aspect, max(grid_height - _LABEL_HEIGHT, 1.5))
        left_width = left_height * beside.aspect + 0.1
    lines = title.splitlines()
    figure_width = max(left_width + grid_width, _CHARACTER_WIDTH * max(map(len, lines), default=0), 3.0)
    figure_height = max(grid_height, left_height + _LABEL_HEIGHT) + 0.2 * (1 + len(lines))
    figure = NotebookFigure(figsize=(figure_width, figure_height), dpi=120, layout="constrained")
    # A title has a file's name, in which a $ begins no formula.
    x = 0.05 / figure_width
    figure.suptitle(printable(title), x=x, horizontalalignment="left", fontsize=10, parse_math=False)
    grid: Any = figure
    if beside is not None:
        parts: Any = figure.subfigures(1, 2, width_ratios=(left_width, figure_width - left_width))
        left, grid = parts
        _draw_panel(left.subplots(), beside, left_width)
    axes = grid.subplots(rows, columns, squeeze=False).ravel().tolist()
    for empty in axes[count:]:
        empty.set_axis_off()
    images = [_draw_panel(place, panel, width) for place, panel in zip(axes, panels, strict=False)]
    if colorbar:
        ticks = np.linspace(panels[0].low, panels[0].high, 5)
        form = {"fraction": 0.03, "pad": 0.01, "aspect": 40, "panchor": False}
        grid.colorbar(images[0], ax=axes, ticks=ticks, format="%.3g", **form).ax.tick_params(labelsize=7)
    return figure


def _draw_panel(axes: Any, panel: Panel, inches: float) -> Any:
    """Draws a panel that is about so many inches wide; returns matplotlib's image."""
    axes.set_axis_off()
    axes.set_box_aspect(1 / panel.aspect)
    axes.set_anchor("NW")
    # y=1: matplotlib would otherwise lay out invisible ticks to find the title's place, for two thirds of the time.
    axes.set_title(panel.title, loc="left", fontsize=7, y=1.0, pad=2)
    if inches > 1.2:  # where both texts have room
        axes.set_title(panel.note, loc="right", fontsize=6, y=1.0, pad=2, color="0.4")
    return axes.imshow(
        panel.values,
        cmap=colormaps[panel.cmap].with_extremes(bad="0.75"),
        vmin=panel.low,
        vmax=panel.high,
        aspect="auto",
        # By default matplotlib averages what it makes smaller, but blurs what it makes a little larger.
        interpolation="nearest" if panel.values.shape[1] < inches * axes.figure.dpi else None,
        interpolation_stage="data",
    )


def _picture(title: str, pixels: Array, limits: tuple[float, float] | None) -> Panel:
    low, high = limits or finite_range(pixels)
    shares = brightness(pixels, low, high)
    return Panel(title, shares[..., 0] if shares.shape[-1] == 1 else shares, note=_note(low, high), cmap="gray")


def _map(title: str, values: Array, limits: tuple[float, float] | None) -> Panel:
    low, high = finite_range(values)
    return Panel(title, values, *(limits or _distinct(low, high)), note=_note(low, high))


def _distinct(low: float, high: float) -> tuple[float, float]:
    """Returns limits for a colour map; those of a flat map put its value into their middle."""
    if math.isnan(low):
        return 0.0, 1.0
    return (low - 1, high + 1) if low == high else (low, high)


def _note(low: float, high: float) -> str:
    if math.isnan(low):
        return "not finite"
    return f"all {low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
