"""Figures of feature maps, pictures and kernels, by matplotlib, which is imported with this module and not before.

pyplot stays out, so nothing global changes for a caller who plots too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.display.pixels import (
    MAX_MAPS,
    Percentiles,
    ValueRange,
    brightness,
    chosen,
    finite_range,
    is_picture,
    is_signed,
    limits_of,
)
from convserve.errors import needing, printable
from convserve.tensors.codec import Array

with needing(
    "Drawing feature maps and kernels needs matplotlib: pip install 'convserve[plot]'. "
    "`convserve conv2d --picture` draws outputs of 1 or 3 channels without it."
):
    from matplotlib import colormaps

    from convserve.display.notebook import NotebookFigure

_DPI = 120
# In pixels of the figure, as is everything below.
_MAX_GRID = 1320
_MAX_PANEL = 480
_MIN_PANEL = 60  # in which a title has room
_TITLE_LINE, _LABEL, _GAP, _MARGIN = 24, 26, 12, 6
_BAR, _BAR_LABELS = 14, 60
_CHARACTER = 10  # of the figure's title
_LABEL_CHARACTER = 7
_NOTE = 18  # characters
_MAX_ASPECT = 4.0

_SIGNED = "blue is below 0, white is 0, red is above"


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
        return float(min(max(width / height, 1 / _MAX_ASPECT), _MAX_ASPECT))

    @property
    def is_stretched(self) -> bool:
        """Whether its pixels are no squares."""
        height, width = self.values.shape[:2]
        return bool(self.aspect != width / height)


def draw_output(
    pixels: Array,
    title: str,
    channels: Sequence[int] | None,
    value_range: ValueRange,
    beside: Array | None,
    percentiles: Percentiles | None = None,
) -> NotebookFigure:
    """Returns a figure of an output, 1 or 3 channels as a picture unless they are named, others as a grid of maps.

    `pixels` and `beside`, the input, are of shape (height, width, channels), float32 or float64. Both are drawn to one
    scale. Maps with values of both signs have 0 in the middle of their colours.
    """
    left = None
    if beside is not None and is_picture(beside.shape[-1]):
        left = _picture("input", beside, finite_range(beside))
    elif beside is not None:
        left = _map(f"input, mean of {beside.shape[-1]} channels", beside.mean(axis=-1), None, None, False)
    count = pixels.shape[-1]
    if channels is None and is_picture(count):
        return draw_panels(
            [_picture("output", pixels, limits_of(pixels, value_range, percentiles))], title, beside=left
        )
    numbers = chosen(channels, count, MAX_MAPS, "channels")
    if len(numbers) < count:
        first = "the first " if numbers == list(range(len(numbers))) else ""
        title += f"\n{first}{len(numbers)} of {count} filters"
    drawn = pixels[..., numbers]
    shared = None if value_range is None else limits_of(drawn, value_range, percentiles)
    low, high = shared or finite_range(drawn)
    signed = is_signed(low, high, value_range)
    if signed:
        title += f"\n{_SIGNED}"
    panels = [_map(f"filter {number}", pixels[..., number], shared, percentiles, signed) for number in numbers]
    return draw_panels(panels, title, beside=left, colorbar=shared is not None)


def draw_panels(
    panels: Sequence[Panel],
    title: str,
    *,
    columns: int | None = None,
    max_size: int = _MAX_PANEL,
    beside: Panel | None = None,
    colorbar: bool = False,
) -> NotebookFigure:
    """Returns a figure of panels of one size, row by row, and of another panel at their left, to the same scale.

    `columns` fills a screen by default; `max_size` bounds a panel's longer side; `colorbar` explains the colours of
    panels that share their limits. A pixel of a small array becomes a whole number of the figure's.
    """
    aspect, count = panels[0].aspect, len(panels)
    if columns is None:  # the form of a screen, and few empty places
        columns = min(
            range(1, count + 1),
            key=lambda number: abs(number * aspect - 1.2 * math.ceil(count / number)) + 2 * (-count % number),
        )
    rows = math.ceil(count / columns)
    most = min(max_size, max_size * aspect, _MAX_GRID / columns, _MAX_GRID * aspect / rows)
    size, left_size = _sizes(panels[0], beside, most)
    # A place holds an image and its title, of which either may be the wider one.
    place = max(size[0], _MIN_PANEL, *(_LABEL_CHARACTER * len(panel.title) for panel in panels)) + _GAP
    left_place = 0 if beside is None else max(left_size[0], _LABEL_CHARACTER * len(beside.title)) + 2 * _GAP
    lines = title.splitlines()
    above = _MARGIN + _TITLE_LINE * len(lines)
    bar = _BAR + _BAR_LABELS if colorbar else 0
    width = max(_MARGIN + left_place + columns * place + bar, _CHARACTER * max(map(len, lines), default=0), 360)
    height = above + max(rows * (size[1] + _LABEL + _GAP), left_size[1] + _LABEL + _GAP)
    figure = NotebookFigure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    # A title has a file's name, in which a $ begins no formula.
    form = {"horizontalalignment": "left", "verticalalignment": "top", "fontsize": 10, "parse_math": False}
    figure.suptitle(printable(title), x=_MARGIN / width, y=1 - _MARGIN / height, **form)

    def axes_at(x: float, y: float, wide: float, high: float) -> Any:
        return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    if beside is not None:
        _draw_panel(axes_at(_MARGIN, above + _LABEL, *left_size), beside, left_size)
    image: Any = None
    for number, panel in enumerate(panels):
        x = _MARGIN + left_place + number % columns * place
        y = above + _LABEL + number // columns * (size[1] + _LABEL + _GAP)
        image = _draw_panel(axes_at(x, y, *size), panel, size)
    if colorbar:
        tall = min(rows * (size[1] + _LABEL + _GAP) - _LABEL - _GAP, _MAX_PANEL)
        axes = axes_at(_MARGIN + left_place + columns * place, above + _LABEL, _BAR, tall)
        ticks = np.linspace(panels[0].low, panels[0].high, 5 if tall > 2 * _MIN_PANEL else 2)
        figure.colorbar(image, cax=axes, ticks=ticks, format="%.3g").ax.tick_params(labelsize=7)
    return figure


def _sizes(panel: Panel, beside: Panel | None, most: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the sizes of panels that may be `most` wide, and that of the one beside them, all in whole pixels."""
    scale = most / panel.values.shape[1]
    if beside is None:
        return _size(panel, scale), (0, 0)
    if panel.is_stretched or beside.is_stretched:
        return _size(panel, scale), _size(beside, _MAX_PANEL * min(1.0, beside.aspect) / beside.values.shape[1])
    scale = min(scale, *(_MAX_PANEL / side for side in beside.values.shape[:2]))
    return _size(panel, scale), _size(beside, scale)


def _size(panel: Panel, scale: float) -> tuple[int, int]:
    """Returns width and height of a panel of which a value's width is `scale`, rounded down to a whole number."""
    wide = panel.values.shape[1] * (int(scale) if scale >= 1 else scale)
    return max(round(wide), 1), max(round(wide / panel.aspect), 1)


def _draw_panel(axes: Any, panel: Panel, size: tuple[int, int]) -> Any:
    """Draws a panel; returns matplotlib's image."""
    axes.set_axis_off()
    # y=1: matplotlib would otherwise lay out invisible ticks to find the title's place, for two thirds of the time.
    axes.set_title(panel.title, loc="left", fontsize=7, y=1.0, pad=2)
    if size[0] > _LABEL_CHARACTER * (len(panel.title) + _NOTE):  # where both texts have room
        axes.set_title(panel.note, loc="right", fontsize=6, y=1.0, pad=2, color="0.4")
    return axes.imshow(
        panel.values,
        cmap=colormaps[panel.cmap].with_extremes(bad="0.75"),
        vmin=panel.low,
        vmax=panel.high,
        aspect="auto",
        # By default matplotlib averages what it makes smaller, but blurs what it makes a little larger.
        interpolation="nearest" if panel.values.shape[1] <= size[0] else None,
        interpolation_stage="data",
    )


def _picture(title: str, pixels: Array, limits: tuple[float, float]) -> Panel:
    shares = brightness(pixels, *limits)
    return Panel(title, shares[..., 0] if shares.shape[-1] == 1 else shares, note=_note(*limits), cmap="gray")


def _map(
    title: str,
    values: Array,
    shared: tuple[float, float] | None,
    percentiles: Percentiles | None,
    signed: bool,
) -> Panel:
    """Returns a map with the limits that all share, or else its own."""
    low, high = limits_of(values, None, percentiles)
    note = _note(low, high)
    low, high = shared or (low, high)
    if signed:
        most = max(abs(low), abs(high)) or 1.0
        low, high = (-1.0, 1.0) if math.isnan(most) else (-most, most)
    return Panel(title, values, *_distinct(low, high), note=note, cmap="RdBu_r" if signed else "viridis")


def _distinct(low: float, high: float) -> tuple[float, float]:
    """Returns limits for a colour map; those of a flat map put its value into their middle."""
    if math.isnan(low):
        return 0.0, 1.0
    return (low - 1, high + 1) if low == high else (low, high)


def _note(low: float, high: float) -> str:
    if math.isnan(low):
        return "not finite"
    return f"all {low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
