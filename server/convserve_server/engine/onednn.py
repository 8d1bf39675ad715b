"""Another way to compute what oneDNN's kernels for CPUs err at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from convserve.layers.conv2d import Conv2D
from convserve.layers.on_cpu import in_float64, onednn_computes, with_even_channels
from convserve.layers.plan import window


def rightly(convolved: Callable[[Any, Any], Any], config: Conv2D, x: Any, kernel: Any) -> Any:
    """Returns convolved(x, kernel) of an NHWC image on a CPU; what oneDNN's kernels err at is computed another way."""
    if not onednn_computes():
        return convolved(x, kernel)
    errs = in_float64(config, x.shape[3])

    def widened() -> Any:
        return tf.cast(convolved(tf.cast(x, "float64"), tf.cast(kernel, "float64")), config.compute_dtype)

    def narrow() -> Any:
        is_odd = with_even_channels(config, x.shape[3])
        return convolved(*_with_zeros(config, x, kernel)) if is_odd else convolved(x, kernel)

    if errs is None:
        return tf.cond(_is_one_column(config, x), widened, narrow)
    return widened() if errs else narrow()


def _with_zeros(config: Conv2D, x: Any, kernel: Any) -> tuple[Any, Any]:
    """Returns an image and a kernel with a channel of zeros behind those of each group."""
    batch, height, width = tf.unstack(tf.shape(x)[:3])
    sizes, own = (batch, height, width, config.groups), x.shape[3] // config.groups
    # tf.pad would end the process: TensorFlow fuses it with the convolution, and takes a kernel's for the image's.
    x = tf.concat([tf.reshape(x, (*sizes, own)), tf.zeros((*sizes, 1), x.dtype)], 4)
    x = tf.reshape(x, (batch, height, width, config.groups * (own + 1)))
    return x, tf.concat([kernel, tf.zeros((*config.kernel_size, 1, config.filters), kernel.dtype)], 2)


def _is_one_column(config: Conv2D, x: Any) -> Any:
    """Returns a boolean tensor: whether the output of an NHWC input has a width of 1."""
    width, stride = tf.shape(x)[2], config.strides[1]
    if config.padding == "same":
        return width <= stride
    padded = 0 if isinstance(config.padding, str) else sum(config.padding[1])
    return width + padded - window(config, 1) < stride
