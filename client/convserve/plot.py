"""Feature maps and kernels as matplotlib figures, which a notebook shows, in a loop too.

>>> from convserve import plot
>>> plot.feature_maps(layer(photo), photo)
>>> plot.kernels(layer).savefig("kernels.png")

Needs matplotlib, which `pip install 'convserve[plot]'` brings. pyplot is not used: no figure waits to be closed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from convserve.display.figures import Panel, draw_output, draw_panels
from convserve.display.notebook import NotebookFigure
from convserve.display.pixels import (
    MAX_MAPS,
    Percentiles,
    ValueRange,
    brightness,
    check_percentiles,
    check_range,
    chosen,
    finite_range,
    sample_pixels,
)
from convserve.errors import InvalidRequestError, short_repr
from convserve.layers.arguments import standard_data_format
from convserve.layers.layer import Layer
from convserve.layers.weight_shapes import WEIGHT_DTYPES
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors.codec import INPUT_DTYPES, Array, standard_array

__all__ = ["feature_maps", "kernels"]

_MAX_ON_A_SIDE = 8
_MAX_KERNEL_SIZE = 168  # pixels of the figure: it has but a few of its own


def feature_maps(
    y: Any,
    x: Any = None,
    *,
    sample: int = 0,
    channels: Sequence[int] | None = None,
    value_range: ValueRange = None,
    percentiles: Percentiles | None = None,
    data_format: str | None = None,
    title: str | None = None,
) -> NotebookFigure:
    """Draws one sample of a layer's output: a grid of feature maps, or of 1 or 3 channels the picture that they are.

    Values that are not finite are grey in a map and black in a picture. If the maps have values of both signs, 0 is
    white, blue is below and red above, and the colours reach as far down as up; so it is with a range from -v to v.

    Args:
        y: The output: rank 4, or rank 3 for one sample, of any dtype that the service knows.
        x: The input, likewise, drawn beside it to the same scale, so that strides and "valid" padding are seen. Of
            other than 1 or 3 channels the mean over them is drawn.
        sample: Which sample of the batch.
        channels: Which channels to draw, such as `range(64, 128)`, each as a map of its own. None: the first 64.
        value_range: The values at the ends of the colours of all maps, (low, high); "shared" for the least and the
            greatest that is drawn, so that maps can be compared; None gives each map its own range, so that faint
            ones can be seen.
        percentiles: Which percentiles of the values are at the ends of the colours, such as (1, 99), so that a few
            outliers do not make all else look alike. None: (0, 100).
        data_format: "channels_last" or "channels_first": where `y` and `x` have their channels. None: as in Conv2D.
        title: Text above the figure. None: the output's shape.

    Returns:
        A `matplotlib.figure.Figure`; `.savefig(path)` writes it. A notebook shows it at the end of the cell if it has
        not been written; `.show()` shows it at once.

    Raises:
        InvalidArgumentError: If there is no such sample or channel, or an argument is none.
    """
    layout = standard_data_format(data_format)
    output = _batch(y, "y")
    pixels = sample_pixels(output, sample, layout, "y")
    beside = None if x is None else _batch(x, "x")
    if beside is not None and beside.shape[:1] != output.shape[:1]:
        expected = f"as many samples as y has, {output.shape[0]}"
        raise InvalidRequestError.for_field("x", expected, f"shape {beside.shape}")
    check_range(value_range)
    check_percentiles(percentiles, value_range)
    if title is None:
        title = f"{output.shape} {output.dtype.name}"
        title += f", sample {sample}" if output.shape[0] > 1 else ""
    input_pixels = None if beside is None else sample_pixels(beside, sample, layout, "x")
    return draw_output(pixels, str(title), channels, value_range, input_pixels, percentiles)


def kernels(
    layer: Layer | StoredLayerBase | Array,
    *,
    filters: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    title: str | None = None,
) -> NotebookFigure:
    """Draws a layer's kernel, 0 in the middle of the colours and all of it on one scale.

    A filter of one channel is a map and one of three is a coloured tile, in which grey is 0. Of other filters there is
    a row for each, with a map for each of its input channels.

    Args:
        layer: A Layer with weights, a stored layer, or a kernel of shape (height, width, input channels / groups,
            filters). The weights of a stored layer are read from the server where this client has not got them.
        filters: Which filters to draw. None: the first 64, or the first 8 where each is a row.
        channels: Which of a filter's input channels to draw, each as a map also if there are three. None: the first 8.
        title: Text above the figure. None: the layer's name and its kernel's shape.

    Returns:
        A `matplotlib.figure.Figure`; `.savefig(path)` writes it.

    Raises:
        InvalidArgumentError: If there is no such filter or channel, or the layer has no weights yet.
        ConvserveError: If the weights have to be read, another of the tree in `convserve.errors`.
    """
    kernel = _kernel(layer)
    depth, count = kernel.shape[2:]
    in_colour = depth == 3 and channels is None
    in_rows = depth > 1 and not in_colour
    numbers = chosen(filters, count, _MAX_ON_A_SIDE if in_rows else MAX_MAPS, "filters")
    depths = chosen(channels, depth, _MAX_ON_A_SIDE, "channels")
    if title is None:
        name = layer.config.name if isinstance(layer, Layer) else getattr(layer, "name", None)
        title = f"{name}: kernel {kernel.shape}" if name else f"kernel {kernel.shape}"
    title = str(title)
    for drawn, available, what in ((len(numbers), count, "filters"), (len(depths), depth, "input channels")):
        title += f"\n{drawn} of {available} {what}" if drawn < available else ""
    most = max(map(abs, finite_range(kernel[:, :, depths][..., numbers])))
    most = most if most > 0 else 1.0  # NaN as well
    if in_colour:
        panels = [Panel(f"filter {number}", brightness(kernel[..., number], -most, most)) for number in numbers]
        return draw_panels(panels, f"{title}\ngrey is 0, full colour {most:.3g}", max_size=_MAX_KERNEL_SIZE)
    labels = {channel: f", channel {channel}" if in_rows else "" for channel in depths}
    panels = [
        Panel(f"filter {number}{labels[channel]}", kernel[:, :, channel, number], -most, most, cmap="RdBu_r")
        for number in numbers
        for channel in depths
    ]
    columns = len(depths) if in_rows else None
    return draw_panels(panels, title, columns=columns, max_size=_MAX_KERNEL_SIZE, colorbar=True)


def _batch(value: Any, field: str) -> Array:
    array = standard_array(value, field, INPUT_DTYPES)
    return array[np.newaxis] if array.ndim == 3 else array


def _kernel(layer: Any) -> Array:
    """Returns a layer's kernel in a dtype that can be drawn."""
    kernel: Any = layer.local if isinstance(layer, StoredLayerBase) else layer
    if isinstance(kernel, Layer):
        kernel = kernel.kernel
    elif isinstance(layer, StoredLayerBase):
        stored: Any = layer
        if inspect.iscoroutinefunction(stored.weights):
            received = "one that is awaited: pass its kernel, (await layer.weights())[0]"
            raise InvalidRequestError.for_field("layer", "a layer whose weights are known here", received)
        kernel = stored.weights()[0]
    if kernel is None:
        expected = "a layer with weights, such as `client.put` returns"
        raise InvalidRequestError.for_field("layer", expected, short_repr(layer))
    array = standard_array(kernel, "layer", WEIGHT_DTYPES)
    if array.ndim != 4:
        expected = "a kernel of (height, width, input channels / groups, filters)"
        raise InvalidRequestError.for_field("layer", expected, f"shape {array.shape}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
