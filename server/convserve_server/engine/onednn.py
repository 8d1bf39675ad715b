"""oneDNN's kernels for CPUs: whether TensorFlow computes with them, and another way for what they err at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from convserve.layers.conv2d import Conv2D
from convserve.layers.on_cpu import in_float64
from convserve.layers.plan import window


def is_on() -> bool:
    """Returns whether oneDNN's kernels compute on CPUs, as TensorFlow decided when it was imported."""
    # Not promised: test_endurance.py fails first.
    return bool(_pywrap_util_port.IsMklEnabled())


def rightly(convolved: Callable[[Any, Any], Any], config: Conv2D, x: Any, kernel: Any) -> Any:
    """Returns convolved(x, kernel) of an NHWC image on a CPU, in float64 where oneDNN's kernels would err."""
    errs = in_float64(config, x.shape[3]) if is_on() else False

    def widened() -> Any:
        return tf.cast(convolved(tf.cast(x, "float64"), tf.cast(kernel, "float64")), config.compute_dtype)

    if errs is None:
        return tf.cond(_is_one_column(config, x), widened, lambda: convolved(x, kernel))
    return widened() if errs else convolved(x, kernel)


def _is_one_column(config: Conv2D, x: Any) -> Any:
    """Returns a boolean tensor: whether the output of an NHWC input has a width of 1."""
    width, stride = tf.shape(x)[2], config.strides[1]
    if config.padding == "same":
        return width <= stride
    padded = 0 if isinstance(config.padding, str) else sum(config.padding[1])
    return width + padded - window(config, 1) < stride
