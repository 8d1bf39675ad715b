"""`make pictures`: runs the blocks of docs/tutorial.md, and draws their values as its pictures, in docs/tutorial/.

A picture is SVG as text, with a light ground of its own, so that it can be read on dark pages too. Within one picture
all grids have one scale.
"""

import colorsys
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import KW_ONLY, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from docs.demo import server

PAGE = Path(__file__).with_name("tutorial.md")
FOLDER = Path(__file__).with_name("tutorial")
WIDTH = 600
_MARGIN, _GAP, _LINE = 14, 24, 17
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.n{font-size:11px;text-anchor:middle}.m{text-anchor:middle}"
    "rect{stroke:#999;stroke-width:.5}.p{stroke-dasharray:2 2}.w{fill:none;stroke:#d95f02;stroke-width:3}"
    ".t{stroke:#d95f02;stroke-width:2.5}circle{fill:#d95f02}"
)


@dataclass
class Grid:
    """Numbers in squares, with a title above and perhaps a border of zeros, a window, some of its cells, and dots.

    Attributes:
        border: (top, bottom, left, right).
        window: (row, column, height, width) of the bordered grid.
        taps: Cells with an edge of their own, as (row, column) of the bordered grid, as of `dots`.
        least: The least width of its place.
        most: The value of the fullest colour, by default the grid's own.
    """

    title: str
    values: Any
    _: KW_ONLY
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    window: tuple[int, int, int, int] | None = None
    taps: Sequence[tuple[int, int]] = ()
    dots: Sequence[tuple[int, int]] = ()
    cell: int = 26
    least: int = 0
    most: float = 0.0
    form: str = "g"

    def __post_init__(self) -> None:
        """Counts rows and columns, with the border."""
        self.values = np.asarray(self.values, float)
        top, bottom, left, right = self.border
        self.rows, self.columns = self.values.shape[0] + top + bottom, self.values.shape[1] + left + right
        self.most = self.most or float(np.abs(self.values).max()) or 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, with the title."""
        wide = max(len(line) for line in self.title.splitlines()) * 6.6
        return round(max(self.columns * self.cell, wide, self.least)), self.rows * self.cell + self.head

    @property
    def head(self) -> int:
        """The height of the title."""
        return _LINE * len(self.title.splitlines()) + 5

    def draw(self, x: int, y: int) -> list[str]:
        """Returns the elements at a place."""
        out = [
            f'<text x="{x}" y="{y + 12 + _LINE * number}">{escape(line)}</text>'
            for number, line in enumerate(self.title.splitlines())
        ]
        y += self.head
        marked = []
        for row, column in np.ndindex(self.rows, self.columns):
            inner = row - self.border[0], column - self.border[2]
            is_inner = 0 <= inner[0] < self.values.shape[0] and 0 <= inner[1] < self.values.shape[1]
            value = self.values[inner] if is_inner else 0.0
            place = x + column * self.cell, y + row * self.cell
            kind = "t" if (row, column) in self.taps else "" if is_inner else "p"
            fill = _colour(value / self.most) if is_inner else "#eee"
            shape = f'<rect x="{place[0]}" y="{place[1]}" width="{self.cell}" height="{self.cell}" fill="{fill}"'
            (marked if kind == "t" else out).append(f'{shape} class="{kind}"/>' if kind else f"{shape}/>")
            middle = place[0] + self.cell / 2, place[1] + self.cell / 2 + 4
            text = format(value, self.form).replace("-", "−") if value else "0"  # noqa: RUF001 (a minus)
            marked.append(f'<text class="n" x="{middle[0]:g}" y="{middle[1]:g}">{text}</text>')
        out += marked
        if self.window is not None:
            row, column, high, wide = self.window
            size = f'width="{wide * self.cell}" height="{high * self.cell}"'
            out.append(f'<rect class="w" x="{x + column * self.cell}" y="{y + row * self.cell}" {size}/>')
        out += [
            f'<circle cx="{x + (column + 0.82) * self.cell:g}" cy="{y + (row + 0.2) * self.cell:g}" r="3.5"/>'
            for row, column in self.dots
        ]
        return out


class Sign:
    """A sign between grids, beside their upper rows; without a text, an empty place."""

    head = 0

    def __init__(self, text: str, width: int = 15) -> None:
        self.text, self.size = text, (width, 0)

    def draw(self, x: int, y: int) -> list[str]:
        """Returns the elements below a place."""
        return [f'<text class="m" x="{x + self.size[0] // 2}" y="{y + 44}">{escape(self.text)}</text>']


def picture(*rows: list[Grid | Sign]) -> str:
    """Returns the SVG of rows of grids and signs."""
    out, y = [], _MARGIN
    for row in rows:
        high = max(item.size[1] for item in row)
        head = max(item.head for item in row)
        x = _MARGIN
        for item in row:
            out += item.draw(x, y + head - item.head)
            x += item.size[0] + _GAP
        assert x - _GAP <= WIDTH - _MARGIN, x
        y += high + _GAP
    y += _MARGIN - _GAP
    ground = f'<rect width="{WIDTH}" height="{y}" rx="6" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", ground, *out, "</svg>"]) + "\n"


def _colour(share: float) -> str:
    """Returns blue for -1, white for 0 and orange for 1, all light enough for black numbers."""
    hue = 0.07 if share > 0 else 0.57
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.5 * min(abs(share), 1.0), 1.0)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _map(values: Any, channel: int = 0) -> Any:
    """Returns one map of the first sample."""
    return values[0, :, :, channel]


def _size(values: Any) -> str:
    return f"{values.shape[1]} × {values.shape[2]}"  # noqa: RUF001 (the sign of multiplication)


def _becomes(grid: Grid, y: Any, window: tuple[int, int, int, int] | None = (0, 0, 1, 1)) -> list[Grid | Sign]:
    """Returns the row of a grid and the output that it becomes."""
    return [grid, Sign("→"), Grid(_size(y), _map(y), window=window)]


def _window(page: dict[str, Any]) -> str:
    x, ones, y = page["x"], page["ones"], page["y"]
    return picture(
        [
            Grid("input, 6 × 6", _map(x), window=(0, 2, 3, 3)),  # noqa: RUF001
            Sign("∗"),  # noqa: RUF001
            Grid("kernel", ones[:, :, 0, 0]),
            Sign("→"),
            Grid("output, 4 × 4", _map(y), window=(0, 2, 1, 1)),  # noqa: RUF001
        ]
    )


def _filters(page: dict[str, Any]) -> str:
    three, maps = page["three"], page["maps"]
    kernels = [Grid(f"filter {number}", three[:, :, 0, number], least=104) for number in range(3)]
    outputs = [Grid(f"map {number}", _map(maps, number)) for number in range(3)]
    return picture([Sign("", 156), *kernels], [Grid("input", _map(page["x"])), *outputs])


def _kernel_size(page: dict[str, Any]) -> str:
    sums = page["sums"]
    titles = {1: "1: ", 3: "3: ", (1, 5): "(1, 5): ", 5: "5: "}
    grids = [Grid(title + _size(sums[size]), _map(sums[size])) for size, title in titles.items()]
    return picture([Grid("input", _map(page["x"]), window=(0, 0, 3, 3)), *grids[:2]], grids[2:])


def _strides(page: dict[str, Any]) -> str:
    rows = []
    for strides, y in page["strided"].items():
        down, right = strides if isinstance(strides, tuple) else (strides, strides)
        dots = [(1 + down * row, 1 + right * column) for row, column in np.ndindex(*y.shape[1:3])]
        grid = Grid(f"strides={strides}", _map(page["x"]), window=(0, 0, 3, 3), dots=dots)
        rows.append(_becomes(grid, y, window=None))
    return picture(*rows)


def _padding(page: dict[str, Any]) -> str:
    valid = Grid('"valid"', _map(page["x"]), window=(0, 0, 3, 3))
    same = Grid('"same": zeros around', _map(page["x"]), border=(1, 1, 1, 1), window=(0, 0, 3, 3))
    return picture(_becomes(valid, page["valid"]), _becomes(same, page["same"]))


def _padding_strides(page: dict[str, Any]) -> str:
    x, rows = page["x"], []
    for title, y, border in (
        ('strides=2, "same"', page["same_2"], (0, 1, 0, 1)),
        ("strides=2, ((1, 1), (1, 1))", page["around"], (1, 1, 1, 1)),
    ):
        dots = [(1 + 2 * row, 1 + 2 * column) for row, column in np.ndindex(3, 3)]
        grid = Grid(title, _map(x), border=border, window=(0, 0, 3, 3), dots=dots)
        rows.append(_becomes(grid, y))
    return picture(*rows)


def _dilation_rate(page: dict[str, Any]) -> str:
    taps = [(2 * row, 2 * column) for row, column in np.ndindex(3, 3)]
    title = "dilation_rate=2: nine pixels of 5 × 5"  # noqa: RUF001
    return picture(_becomes(Grid(title, _map(page["x"]), taps=taps), page["dilated"]))


def _groups(page: dict[str, Any]) -> str:
    four = page["four"]
    rows: list[list[Grid | Sign]] = [
        [Grid(f"channel {number}", four[0, 1:4, 2:5, number], most=10) for number in range(4)],
    ]
    for title, y, seen in (
        ("groups=1", page["together"], ("0 + 1 + 2 + 3", "0 + 1 + 2 + 3")),
        ("groups=2", page["apart"], ("0 + 1", "2 + 3")),
    ):
        titles = [f"{title}, filter {number}:\n{seen[number]}" for number in range(2)]
        rows.append([Grid(text, y[0, 1:4, 2:5, number], most=10) for number, text in enumerate(titles)])
    return picture(*rows)


def _activation(page: dict[str, Any]) -> str:
    names = {"edges": "None", "relu": '"relu"', "leaky": "LeakyReLU(0.5)"}
    return picture([Grid(title, _map(page[name])) for name, title in names.items()])


def _kernel_initializer(page: dict[str, Any]) -> str:
    return picture([Grid(name, kernel[:, :, 0, 0], cell=44, form=".2f") for name, kernel in page["drawn"].items()])


def _kernel_constraint(page: dict[str, Any]) -> str:
    after = page["constrained"].weights()[0][:, :, 0, 0]
    return picture([Grid("given", page["sobel"]), Sign("→"), Grid('"non_neg", updated', after)])


PICTURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "window": _window,
    "filters": _filters,
    "kernel_size": _kernel_size,
    "strides": _strides,
    "padding": _padding,
    "padding_strides": _padding_strides,
    "dilation_rate": _dilation_rate,
    "groups": _groups,
    "activation": _activation,
    "kernel_initializer": _kernel_initializer,
    "kernel_constraint": _kernel_constraint,
}
"""What draws each picture, by its name, of the variables of the page's blocks."""


def run_page(target: str, closing: Callable[[dict[str, Any]], None]) -> None:
    """Runs the blocks against a server; calls `closing` with their variables before the last one, which clears up."""
    *blocks, last = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    page: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("localhost:50051", target), page)  # noqa: S102 (our own page)
    closing(page)
    exec(last, page)  # noqa: S102


def main() -> None:
    """Draws all pictures."""

    def draw(page: dict[str, Any]) -> None:
        for name, make in PICTURES.items():
            (FOLDER / f"{name}.svg").write_text(make(page), encoding="utf-8")

    FOLDER.mkdir(exist_ok=True)
    with server() as address, redirect_stdout(io.StringIO()):  # what the blocks print is not looked at here
        run_page(address, draw)
    total = sum(path.stat().st_size for path in FOLDER.glob("*.svg"))
    print(f"-- {len(PICTURES)} pictures in {FOLDER}, {total / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
