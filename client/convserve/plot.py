"""Feature maps and kernels as matplotlib figures, which a notebook shows by themselves.

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

from convserve.display.feature_maps import draw_output
from convserve.display.panels import Panel, ShownFigure, draw
from convserve.display.pixels import MAX_MAPS, ValueRange, brightness, chosen, finite_range, sample_pixels
from convserve.errors import FieldViolation, InvalidRequestError, short_repr
from convserve.layers.arguments import standard_data_format
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import StoredLayerBase
from convserve.tensors.codec import FLOAT_DTYPES, INPUT_DTYPES, Array, standard_array

__all__ = ["feature_maps", "kernels"]

_MAX_ON_A_SIDE = 8
_MAX_KERNEL = 1.4  # inches; it has but a few pixels


def feature_maps(
    y: Any,
    x: Any = None,
    *,
    sample: int = 0,
    channels: Sequence[int] | None = None,
    value_range: ValueRange = None,
    data_format: str | None = None,
    title: str | None = None,
) -> ShownFigure:
    """Draws one sample of a layer's output: a grid of feature maps, or of 1 or 3 channels the picture that they are.

    Values that are not finite are grey in a map and black in a picture.

    Args:
        y: The output: rank 4, or rank 3 for one sample, of any dtype that the service knows.
        x: The input, likewise, drawn beside it. Of other than 1 or 3 channels the mean over them is drawn.
        sample: Which sample of the batch.
        channels: Which channels to draw, such as `range(64, 128)`, each as a map of its own. None: the first 64.
        value_range: The values at the ends of the colours of all maps, (low, high); "shared" for the least and the
            greatest that is drawn, so that maps can be compared; None scales each map by itself, so that faint ones
            can be seen.
        data_format: "channels_last" or "channels_first": where `y` and `x` have their channels. None: as in Conv2D.
        title: Text above the figure. None: the output's shape.

    Returns:
        A `matplotlib.figure.Figure`; `.savefig(path)` writes it.

    Raises:
        InvalidArgumentError: If there is no such sample or channel, or an argument is none.
    """
    layout = standard_data_format(data_format)
    output = _batch(y, "y")
    beside = None if x is None else _batch(x, "x")
    if beside is not None and beside.shape[0] != output.shape[0]:
        text = (
            f"Expected as many samples as y has, {output.shape[0]}. Received {beside.shape[0]}: shape {beside.shape}."
        )
        raise InvalidRequestError(FieldViolation("x", text))
    if not (value_range is None or value_range == "shared" or _is_range(value_range)):
        text = f"Expected (low, high) with low < high, 'shared' or None. Received {short_repr(value_range)}."
        raise InvalidRequestError(FieldViolation("value_range", text))
    if title is None:
        title = f"{tuple(output.shape)} {output.dtype.name}"
        title += f", sample {sample}" if output.shape[0] > 1 else ""
    return draw_output(
        sample_pixels(output, sample, layout, "y"),
        title,
        channels=channels,
        value_range=value_range,
        beside=None if beside is None else sample_pixels(beside, sample, layout, "x"),
    )


def kernels(
    layer: Layer | StoredLayerBase | Array,
    *,
    filters: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    title: str | None = None,
) -> ShownFigure:
    """Draws a layer's kernel, 0 in the middle of the colours and all of it on one scale.

    A filter of one channel is a map and one of three is a coloured tile, in which grey is 0. Of other filters there is
    a row for each, with a map for each of its input channels.

    Args:
        layer: A Layer with weights, a stored layer, or a kernel of shape (height, width, input channels / groups,
            filters). A stored layer whose weights are not known here reads them from the server.
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
    coloured = depth == 3 and channels is None
    in_rows = depth > 1 and not coloured
    numbers = chosen(filters, count, _MAX_ON_A_SIDE if in_rows else MAX_MAPS, "filters")
    shown_channels = chosen(channels, depth, _MAX_ON_A_SIDE, "channels")
    if title is None:
        title = f"{_name(layer)}kernel {kernel.shape}"
    for drawn, there, what in ((len(numbers), count, "filters"), (len(shown_channels), depth, "input channels")):
        title += f"\n{drawn} of {there} {what}" if drawn < there else ""
    most = max(map(abs, finite_range(kernel[:, :, shown_channels][..., numbers])))
    most = most if most > 0 else 1.0  # NaN as well
    if coloured:
        panels = [Panel(f"filter {each}", brightness(kernel[..., each], -most, most), -most, most) for each in numbers]
        return draw(panels, f"{title}\ngrey is 0, full colour {most:.3g}", longest=_MAX_KERNEL)
    panels = [
        Panel(
            f"filter {each}" + (f", channel {channel}" if in_rows else ""),
            np.where(np.isfinite(kernel[:, :, channel, each]), kernel[:, :, channel, each], np.nan),
            -most,
            most,
            colours="RdBu_r",
        )
        for each in numbers
        for channel in shown_channels
    ]
    columns = len(shown_channels) if in_rows else None
    return draw(panels, title, columns=columns, longest=_MAX_KERNEL, scale=panels[0])


def _batch(value: Any, field: str) -> Array:
    """Returns a tensor with a batch axis."""
    array = standard_array(value, field, INPUT_DTYPES)
    return array[np.newaxis] if array.ndim == 3 else array


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and bool(value[0] < value[1])


def _name(layer: Layer | StoredLayerBase | Array) -> str:
    """Returns "edges: " for a layer of that name, and nothing for one without."""
    name = layer.name if isinstance(layer, StoredLayerBase) else layer.config.name if isinstance(layer, Layer) else None
    return f"{name}: " if name else ""


def _kernel(layer: Any) -> Array:
    """Returns a layer's kernel in a dtype that can be drawn."""
    kernel, stored = layer, isinstance(layer, StoredLayerBase)
    of_layer = layer.local if stored else layer
    if stored and of_layer is None:
        if inspect.iscoroutinefunction(layer.weights):
            text = "Expected a layer whose weights are known here. Received one that is awaited: pass its kernel, "
            raise InvalidRequestError(FieldViolation("layer", f"{text}(await layer.weights())[0]."))
        kernel = layer.weights()[0]
    elif isinstance(of_layer, Layer):
        kernel = of_layer.kernel
    if kernel is None:
        text = f"Expected a layer with weights, such as `client.put` returns. Received {short_repr(layer)}."
        raise InvalidRequestError(FieldViolation("layer", text))
    array = standard_array(kernel, "layer", FLOAT_DTYPES)
    if array.ndim != 4:
        text = f"Expected a kernel of (height, width, input channels / groups, filters). Received shape {array.shape}."
        raise InvalidRequestError(FieldViolation("layer", text))
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
