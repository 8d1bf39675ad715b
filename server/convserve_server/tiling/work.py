"""How much a call computes, in floating-point operations of a dense convolution in float32: an estimate of its time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convserve.layers.conv2d import Conv2D
from convserve.layers.on_cpu import in_float64
from convserve.layers.plan import Plan, window
from convserve.tensors.codec import Shape

# Measured on a CPU, where a dense convolution in float32 does 50 billion operations a second.
_GROUPED, _OTHER_DTYPE = 16, 4  # times as long as that
_ACTIVATION, _SPARSEMAX = 128, 2048  # operations in whose time an element is activated
_DRAWN = 1000  # the same of a weight that is drawn
_QR = 64  # of an orthogonal matrix: operations for each element and the shorter side


def work(chain: Sequence[Conv2D], planned: Plan) -> int:
    """Returns the work of applying layers, with weights, by the plan for them."""
    total = 0
    for config, step in zip(chain, planned.layers, strict=True):
        is_float32 = config.compute_dtype == "float32" and not in_float64(config, step.kernel_shape[2] * config.groups)
        factor = _GROUPED if config.groups > 1 else 1 if is_float32 else _OTHER_DTYPE
        operations = 2 * math.prod(step.kernel_shape) + (config.filters if config.use_bias else 0)
        elements = step.flops // operations * config.filters
        each = _SPARSEMAX if config.activation.keras_name == "sparsemax" else _ACTIVATION
        total += step.flops * factor + elements * each
    return total


def is_dense(chain: Sequence[Conv2D], shape: Shape, planned: Plan) -> bool:
    """Returns whether most of the operations are computed: kernels skip those on padding, where windows are larger."""
    for config, step in zip(chain, planned.layers, strict=True):
        sizes = shape[1:3] if config.data_format == "channels_last" else shape[2:]
        if any(window(config, direction) > size for direction, size in enumerate(sizes)):
            return False
        shape = step.output_shape
    return True


def drawing_work(config: Conv2D, kernel_shape: Shape) -> int:
    """Returns the work of drawing a layer's kernel."""
    weights = math.prod(kernel_shape)
    if config.kernel_initializer.keras_name != "orthogonal":
        return weights * _DRAWN
    return weights * (_DRAWN + _QR * min(weights // config.filters, config.filters))
