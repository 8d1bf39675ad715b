"""The page's pictures, as SVG: input, feature maps and kernels on one scale, without smoothing, windows drawn on them.

Their colours are those of the page, light or dark: `page.css` has the classes.
"""

from __future__ import annotations

import base64
import io

import numpy as np

from convserve.display.pixels import brightness, finite_range
from convserve.errors import needing
from convserve.play.convolution.windows import Padding, Window, WrittenSum
from convserve.tensors.codec import Array

with needing("The page needs Pillow and matplotlib: pip install 'convserve[play]'."):
    from matplotlib import colormaps
    from PIL import Image

_MAX_SIDE = 264  # pixels on the screen of the padded input's longer side: three pictures beside each other
_MAX_SCALE = 44
_NUMBERS_FROM = 24  # a pixel of this size on the screen has room for its number
_ZOOM_SIDE, _ZOOM_CELL = 330, 60


def scale_for(height: int, width: int, padding: Padding) -> float:
    """Returns the scale on which a padded input fits, and all of the output is drawn.

    It is the pixels on the screen for one of the tensor's.
    """
    longer = max(height + padding.top + padding.bottom, width + padding.left + padding.right)
    scale = min(_MAX_SIDE / longer, _MAX_SCALE)
    return float(int(scale)) if scale >= 1 else scale


def number_text(value: float, digits: int = 3) -> str:
    """Returns a number in few characters, with a true minus sign."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        text = f"{value:.0f}" if size < 1e6 else f"{value:.{digits - 1}e}"
    else:
        text = f"{value:.{digits}g}" if size < 100 or digits > 2 else f"{value:.0f}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")


def input_svg(pixels: Array, padding: Padding, window: Window | None, size: float) -> str:
    """Returns the input, (height, width, channels), with its padding as a border and the window of an output pixel.

    `size` is the scale: how large one of its pixels is drawn.
    """
    height, width, channels = pixels.shape
    shown = pixels[..., :3] if channels == 3 else pixels.mean(axis=-1, keepdims=True)
    low, high = (0.0, 255.0) if pixels.dtype == np.uint8 else finite_range(shown)
    grey = brightness(shown.astype(np.float32), low, high)
    box = (
        -padding.left * size,
        -padding.top * size,
        (width + padding.left + padding.right) * size,
        (height + padding.top + padding.bottom) * size,
    )
    parts = [_rect(*box, "border"), _image(grey, width * size, height * size)]
    if size >= _NUMBERS_FROM:
        values = shown[..., 0]
        parts += _numbers(values, grey.mean(axis=-1), size)
        parts += [
            _text(column, row, size, "0", "numeral padded")
            for row in range(-padding.top, height + padding.bottom)
            for column in range(-padding.left, width + padding.right)
            if not (0 <= row < height and 0 <= column < width)
        ]
    if window is not None:
        parts += _window(window, size)
    return _svg("input", parts, f"input of {height} x {width}", *box)


def map_svg(values: Array, limits: tuple[float, float] | None, size: float, pixel: tuple[int, int] | None) -> str:
    """Returns a feature map, (height, width), with one of its pixels marked; `size` is the scale."""
    height, width = values.shape
    low, high = limits or finite_range(values)
    shares = brightness(values.astype(np.float32), low, high)
    colours = colormaps["viridis"](shares)[..., :3]
    colours[~np.isfinite(values)] = 0.6
    parts = _colours(values, colours, size)
    if pixel is not None:
        least = max(size, 7.0)  # so that it is seen
        middle = [(place + 0.5) * size - least / 2 for place in pixel]
        parts.append(_rect(middle[1], middle[0], least, least, "mark"))
    return _svg("map", parts, f"feature map of {height} x {width}", 0, 0, width * size, height * size)


def kernel_svg(matrix: Array, most: float) -> str:
    """Returns a filter's numbers for one channel, (kernel height, kernel width); 0 is in the middle of the colours."""
    height, width = matrix.shape
    size = min(40.0, 160.0 / max(height, width))
    colours = colormaps["RdBu_r"](0.5 + matrix.astype(np.float64) / (2 * most or 1.0))[..., :3]
    title = f"kernel of {height} x {width}"
    return _svg("kernel", _colours(matrix, colours, size), title, 0, 0, width * size, height * size)


def zoom_svg(pixels: Array, written: WrittenSum, index: int) -> str:
    """Returns the window from near for one of its channels: what lies under each weight, and the gaps between."""
    window = written.window
    channel, (height, width) = written.channels[index], pixels.shape[:2]
    rows, columns = (range(places[0], places[-1] + 1) for places in (window.rows, window.columns))
    size = min(_ZOOM_CELL, _ZOOM_SIDE / max(len(rows), len(columns)))
    values = pixels[..., channel].astype(np.float32)
    low, high = (0.0, 255.0) if pixels.dtype == np.uint8 else finite_range(values)
    grey = brightness(values, low, high)
    parts = []
    for down, row in enumerate(rows):
        for right, column in enumerate(columns):
            is_inside = 0 <= row < height and 0 <= column < width
            x, y = right * size, down * size
            kind = "numeral padded"
            if is_inside:
                shade = round(255 * float(grey[row, column]))
                kind = f"numeral {_ink(grey[row, column])}"
                parts.append(_rect(x, y, size, size, "pixel", f' fill="rgb({shade},{shade},{shade})"'))
            else:
                parts.append(_rect(x, y, size, size, "border"))
            if row in window.rows and column in window.columns:
                tap = window.rows.index(row), window.columns.index(column)
                parts.append(_rect(x + 1, y + 1, size - 2, size - 2, "tap"))
                if size >= _NUMBERS_FROM:
                    value = number_text(float(written.values[index][tap]))
                    weight = "×" + number_text(float(written.weights[index][tap]), 2)
                    parts.append(_label(x + size / 2, y + size * 0.36, _fitting(value, size), value, kind))
                    parts.append(_label(x + size / 2, y + size * 0.7, _fitting(weight, size), weight, kind))
            else:
                parts.append(_rect(x, y, size, size, "gap"))
    return _svg("zoom", parts, f"window on channel {channel}", 0, 0, len(columns) * size, len(rows) * size)


def _svg(kind: str, parts: list[str], title: str, x: float, y: float, width: float, height: float) -> str:
    view = f"{x - 2:g} {y - 2:g} {width + 4:g} {height + 4:g}"  # lines are wider than edges
    size = f'width="{width + 4:g}" height="{height + 4:g}"'
    return f'<svg class="{kind}" role="img" aria-label="{title}" viewBox="{view}" {size}>{"".join(parts)}</svg>'


def _colours(values: Array, colours: Array, size: float) -> list[str]:
    """Returns a matrix in its colours, with its numbers where there is room."""
    image = _image(colours, values.shape[1] * size, values.shape[0] * size)
    brightnesses = colours @ np.array([0.3, 0.6, 0.1])
    return [image, *(_numbers(values, brightnesses, size) if size >= _NUMBERS_FROM else ())]


def _image(shares: Array, width: float, height: float) -> str:
    """Returns an image of values from 0 to 1, (height, width, 1 or 3), that the browser enlarges pixel by pixel."""
    eight_bit = np.rint(shares * 255).astype(np.uint8)
    picture = Image.fromarray(eight_bit[..., 0] if eight_bit.shape[-1] == 1 else eight_bit)
    if width < picture.width:  # smaller than its pixels: of a page that is too large marimo shows nothing
        picture = picture.resize((max(1, round(width)), max(1, round(height))), Image.Resampling.BOX)
    with io.BytesIO() as file:
        picture.save(file, format="PNG")
        data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{width:g}" height="{height:g}" preserveAspectRatio="none"'
    return f'<image class="pixels" {size} href="data:image/png;base64,{data}"></image>'


def _numbers(values: Array, shares: Array, size: float) -> list[str]:
    return [
        _text(column, row, size, number_text(float(values[row, column]), 2), f"numeral {_ink(shares[row, column])}")
        for row in range(values.shape[0])
        for column in range(values.shape[1])
    ]


def _ink(share: float) -> str:
    return "light" if share < 0.5 else "dark"


def _window(window: Window, size: float) -> list[str]:
    top, left = window.rows[0] * size, window.columns[0] * size
    height, width = ((places[-1] - places[0] + 1) * size for places in (window.rows, window.columns))
    parts = []
    if size >= 3:
        parts = [
            _rect(column * size, row * size, size, size, "tap") for row in window.rows for column in window.columns
        ]
    return [*parts, _rect(left, top, width, height, "window")]


def _rect(x: float, y: float, width: float, height: float, kind: str, fill: str = "") -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{fill}></rect>'


def _text(column: int, row: int, size: float, text: str, kind: str) -> str:
    return _label((column + 0.5) * size, (row + 0.5) * size, _fitting(text, size), text, kind)


def _fitting(text: str, size: float) -> float:
    """Returns the size of the letters with which a text fits into a pixel of this size."""
    return min(15.0, size * 0.34, size * 1.45 / len(text))


def _label(x: float, y: float, size: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size:.3g}">{text}</text>'
