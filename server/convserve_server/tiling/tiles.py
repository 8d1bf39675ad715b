"""Tiles of a chain of layers: the rows of the input that some rows of the output need, and the padding of each layer.

A tile is padded only where it touches the true edge of what a layer reads. Inside it has the neighbouring rows instead,
the halo; what a layer computes of them is exactly what it would compute of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.plan import channel_axis, padding_amounts, window
from convserve.tensors.codec import Shape

Rows = tuple[int, int]
"""The first row, and the one after the last."""


@dataclass(frozen=True)
class Tile:
    """A part of a forward pass."""

    chain: tuple[Conv2D, ...]  # the layers' configurations, whose padding is what is left of it in this tile
    input_rows: Rows  # what they read of the chain's input
    output_rows: Rows  # what they give of its output: what was asked for, or more, where that is padding alone


def height_axis(config: Conv2D) -> int:
    """Returns the axis of the height in a layer's input and output."""
    return 1 if channel_axis(config) == 3 else 2


def needs_all_rows(config: Conv2D) -> bool:
    """Returns whether a row of the output depends on rows that the window does not cover, as softmax's may."""
    axis = getattr(config.activation, "axis", None)
    return axis is not None and axis % 4 == height_axis(config)


def tiling_blocker(chain: Sequence[Conv2D]) -> str:
    """Returns what does not let a chunk of layers be computed by tiles; nothing if they can be."""
    if needs_all_rows(chain[-1]):
        return f"{chain[-1].activation.keras_name} along the height"
    padded = any(max(config.padding[0]) >= window(config, 0) for config in chain if not isinstance(config.padding, str))
    if padded and chain[-1].activity_regularizer is not None:
        return "activity_regularizer with rows of padding alone"  # whose tiles overlap, and would count rows twice
    return ""


def chunks(chain: Sequence[Conv2D]) -> Iterator[tuple[int, int]]:
    """Yields, as (first, end), the fewest chunks of a chain that can each be computed by tiles, or not at all.

    A chunk ends where the next layer's height is another axis; before and after a layer that needs all rows, which is a
    chunk of its own; and after a layer whose output has a loss, as the halos of the tiles would count several times.
    """
    first = 0
    for end in range(1, len(chain) + 1):
        last = chain[end - 1]
        if (
            end == len(chain)
            or last.activity_regularizer is not None
            or last.data_format != chain[end].data_format
            or needs_all_rows(last)
            or needs_all_rows(chain[end])
        ):
            yield first, end
            first = end


def tile(chain: Sequence[Conv2D], shapes: Sequence[Shape], rows: Rows) -> Tile:
    """Returns the tile that gives some rows of a chain's output.

    The layers have one data format, and none mixes rows. The shapes are the input's, and then each layer's output's.
    """
    (first, end), height = rows, shapes[-1][height_axis(chain[-1])]
    while True:
        part = _tile(chain, shapes, (first, end))
        if part is not None:
            return part
        # These rows come of padding alone, and no tensor is without rows. All rows together are always a tile.
        first, end = max(0, 2 * first - end), min(2 * end - first, height)


def row_slices(axis: int, first: int, end: int) -> tuple[slice, ...]:
    """Returns the slices of rows, where the height is this axis."""
    return (*(slice(None) for _ in range(axis)), slice(first, end))


def with_configs(chunk: Sequence[Layer], chain: Sequence[Conv2D]) -> tuple[Layer, ...]:
    """Returns a chunk's layers with a tile's configurations."""
    return tuple(
        layer if layer.config == config else Layer(config, layer.kernel, layer.bias)
        for layer, config in zip(chunk, chain, strict=True)
    )


def _tile(chain: Sequence[Conv2D], shapes: Sequence[Shape], rows: Rows) -> Tile | None:
    """Returns a tile; None if one of its layers would read padding alone."""
    wanted, configs = rows, []
    for config, before, after in zip(reversed(chain), reversed(shapes[:-1]), reversed(shapes[1:]), strict=True):
        axis = height_axis(config)
        height = before[axis]
        if wanted == (0, after[axis]):
            wanted = (0, height)
        else:
            (top, _), sides = (padding_amounts(config, before[axis + direction], direction) for direction in (0, 1))
            stride = config.strides[0]
            first, end = wanted[0] * stride - top, (wanted[1] - 1) * stride - top + window(config, 0)
            wanted = max(first, 0), min(end, height)
            if wanted[0] >= wanted[1]:
                return None
            config = _padded(config, ((wanted[0] - first, end - wanted[1]), sides))  # noqa: PLW2901
        configs.append(config)
    return Tile(tuple(reversed(configs)), wanted, rows)


@lru_cache(maxsize=1000)
def _padded(config: Conv2D, amounts: tuple[Rows, Rows]) -> Conv2D:
    """Returns a configuration with this padding: the same one if it has it, so that it shares traces and weights."""
    is_explicit = amounts == config.padding or any(map(any, amounts)) or config.strides_and_dilates
    padding = amounts if is_explicit else "valid"
    return config if padding == config.padding else config.replace(padding=padding)
