"""How the output's shape, the parameters and the operations come about: formulas with their numbers filled in."""

from __future__ import annotations

from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import Plan, padding_amounts


def size_formula(conv2d: Conv2D, size: int, direction: int) -> tuple[str, str]:
    """Returns the formula of the output's height (direction 0) or width (direction 1), in words and in numbers."""
    stride = conv2d.strides[direction]
    before, after = padding_amounts(conv2d, size, direction)
    if conv2d.padding == "same":
        zeros = f", with {before} + {after} zeros around" if before + after else ""
        return "⌈size ÷ stride⌉", f"⌈{size} ÷ {stride}⌉ = {-(-size // stride)}{zeros}"
    kernel, dilation = conv2d.kernel_size[direction], conv2d.dilation_rate[direction]
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    padding, amounts = (" + padding", f" + {before} + {after}") if before + after else ("", "")
    words = f"⌊(size{padding} − dilation × (kernel − 1) − 1) ÷ stride⌋ + 1"
    return words, f"⌊({size}{amounts} − {dilation} × ({kernel} − 1) − 1) ÷ {stride}⌋ + 1 = {outputs}"


def parameters_formula(conv2d: Conv2D, plan: Plan) -> str:
    """Returns how many weights there are, and why."""
    height, width, depth, filters = plan.layers[0].kernel_shape
    bias = f" + {filters} (bias)" if conv2d.use_bias else ""
    shared = f" ÷ {conv2d.groups}" if conv2d.groups > 1 else ""
    channels = depth * conv2d.groups
    return f"{height} × {width} × {channels}{shared} × {filters}{bias} = {plan.parameters:,}"


def flops_formula(conv2d: Conv2D, plan: Plan) -> str:
    """Returns how many operations there are, and why: a multiplication and an addition a weight and pixel."""
    height, width, depth, filters = plan.layers[0].kernel_shape
    weights = 2 * height * width * depth * filters + (filters if conv2d.use_bias else 0)
    bias = f" + {filters}" if conv2d.use_bias else ""
    weighing = f"2 × {height} × {width} × {depth} × {filters}{bias}"
    return f"{plan.flops // weights:,} pixels × ({weighing}) = {plan.flops:,}"
