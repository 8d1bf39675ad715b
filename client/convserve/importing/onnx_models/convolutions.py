"""A Conv of ONNX' as a layer: the same numbers, in the same order of axes, for every image that the model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convserve.errors import InvalidConfigurationError, InvalidWeightsError, short_repr
from convserve.importing.imported import NotImportedError
from convserve.importing.onnx_models.graphs import Dimensions, Graph, Op
from convserve.importing.onnx_models.tensors import Tensors, dtype_of
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.tensors.codec import FLOAT_DTYPES, Shape

Sizes = Callable[[str], Dimensions | None]
"""Returns the dimensions of a tensor, or None if nothing is known of them."""
_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
_Pairs = tuple[tuple[int, int], ...]


def layer_of(op: Op, graph: Graph, tensors: Tensors, sizes: Sizes) -> Layer:
    """Returns a Conv as a layer with `data_format="channels_first"`, as ONNX has its axes.

    One of rank 3 has a kernel of height 1, for images of that height. Raises NotImportedError if its weights are not
    constant, or it is of another rank, InvalidConfigurationError for attributes that no Conv2D can have, and
    InvalidWeightsError if its weights are broken, or do not fit.
    """
    kernel = _constant(op, 1, "kernel", graph)
    bias = _constant(op, 2, "bias", graph) if op.input(2) else None
    shape = tensors.shape(kernel, "kernel")
    rank = len(shape)
    if rank not in (3, 4):
        raise NotImportedError(f"a Conv of rank {rank}: a Conv2D is of rank 4, and may stand for one of rank 3")
    dtype = dtype_of(kernel)
    if bias is not None and dtype_of(bias) != dtype:
        raise InvalidWeightsError.for_field("bias", f"{dtype}, as the kernel has", dtype_of(bias))
    if dtype not in FLOAT_DTYPES:
        raise NotImportedError(f"its kernel has {dtype}; a layer's weights are floating-point numbers")
    elements = tensors.array(kernel, "kernel")
    config = _configuration(op, shape, dtype, bias is not None, sizes)
    if rank == 3:
        elements = elements.reshape(*shape[:2], 1, shape[2])
    return Layer(config, elements.transpose(2, 3, 1, 0), None if bias is None else tensors.array(bias, "bias"))


def kernel_rank(op: Op, graph: Graph) -> int | None:
    """Returns the rank of a Conv's constant kernel, which is its input's; None for any other node."""
    kernel = graph.constant(op.input(1)) if op.kind == "Conv" else None
    return None if kernel is None else len(kernel.dims)


def _constant(op: Op, index: int, what: str, graph: Graph) -> Any:
    if not op.input(index):
        raise NotImportedError(f"it has no {what}")
    tensor = graph.constant(op.input(index))
    if tensor is None:
        raise NotImportedError(f"its {what} {graph.why_not_constant(op.input(index))}")
    return tensor


def _configuration(op: Op, shape: Shape, dtype: str, use_bias: bool, sizes: Sizes) -> Conv2D:
    spatial = shape[2:]
    given = op.attribute("kernel_shape", spatial)
    if given != spatial:
        expected = f"{spatial}, which is the kernel's shape"
        raise InvalidConfigurationError.for_field("kernel_shape", expected, short_repr(given))
    strides = _of_length(op, "strides", len(spatial))
    dilations = _of_length(op, "dilations", len(spatial))
    height = (1,) * (2 - len(spatial))  # of a Conv of rank 3
    return Conv2D(
        shape[0],
        height + spatial,
        strides=height + strides,
        padding=_padding(op, spatial, strides, dilations, sizes),
        data_format="channels_first",
        dilation_rate=height + dilations,
        groups=op.attribute("group", 1),
        use_bias=use_bias,
        dtype=dtype,
    )


def _of_length(op: Op, name: str, length: int) -> tuple[int, ...]:
    values = op.attribute(name, ()) or (1,) * length
    if len(values) != length:
        raise InvalidConfigurationError.for_field(name, f"{length} numbers, one a direction", short_repr(values))
    return values


def _padding(op: Op, kernel: Shape, strides: Shape, dilations: Shape, sizes: Sizes) -> str | _Pairs:
    """Returns the padding as Conv2D has it: "valid" and "same" where they are what is meant, or amounts."""
    directions = len(kernel)
    auto_pad = op.attribute("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in _AUTO_PADS:
        raise InvalidConfigurationError.for_field("auto_pad", f"one of {', '.join(_AUTO_PADS)}", short_repr(auto_pad))
    # Keras' own words do not allow strides and dilation together; amounts do.
    is_both = max(strides) > 1 and max(dilations) > 1
    if auto_pad.startswith("SAME"):
        if auto_pad == "SAME_UPPER" and not is_both:
            return "same"
        windows = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        if min(*strides, *windows) < 1:
            return "same"  # which Conv2D refuses with what is wrong
        amounts = _same(op, windows, strides, auto_pad, sizes)
    elif auto_pad == "VALID" or "pads" not in op.attributes:
        amounts = ((0, 0),) * directions
    else:
        pads = op.attribute("pads", ())
        if len(pads) != 2 * directions:
            expected = f"{2 * directions} numbers: the beginnings, then the ends"
            raise InvalidConfigurationError.for_field("pads", expected, short_repr(pads))
        amounts = tuple(zip(pads[:directions], pads[directions:], strict=True))
    if not is_both and not any(map(any, amounts)):
        return "valid"
    return ((0, 0),) * (2 - directions) + amounts


def _same(op: Op, windows: list[int], strides: Shape, auto_pad: str, sizes: Sizes) -> _Pairs:
    """Returns the amounts of SAME_LOWER, or of SAME_UPPER, which depend on the image's size where there are strides."""
    pairs, directions = [], len(windows)
    known = sizes(op.input(0)) if any(min(each) > 1 for each in zip(windows, strides, strict=True)) else None
    for direction, (window, stride) in enumerate(zip(windows, strides, strict=True)):
        if min(window, stride) == 1:
            total = window - 1 if stride == 1 else 0  # whatever the image's size
        else:
            size = known[2 + direction] if known is not None and len(known) == 2 + directions else None
            if size is None:
                raise NotImportedError(
                    f"auto_pad={auto_pad} with strides={strides} pads by the image's size, which the file leaves open: "
                    "give the model's inputs fixed sizes, as by onnx.tools.update_model_dims"
                )
            total = max(0, (-(-size // stride) - 1) * stride + window - size)
        less, more = total // 2, total - total // 2
        pairs.append((more, less) if auto_pad == "SAME_LOWER" else (less, more))
    return tuple(pairs)
