"""The forward pass of a chain of layers as one traced TensorFlow function.

Weights are arguments and batch, height and width are open, so that all layers of one geometry, and all sizes of image,
share one trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from convserve import Conv2D
from convserve_server.engine.keras_objects import Function, keras_activation, keras_regularizer


def traced(chain: Sequence[Conv2D], input_channels: int, input_dtype: str, output_dtype: str, on_gpu: bool) -> Any:
    """Returns a `tf.function` of an input and each layer's (kernel, bias), or (kernel,) where it has no bias.

    It returns the output, and each layer's losses as a dictionary with the keys of `Losses`.
    """
    steps = [_step(config, on_gpu) for config in chain]

    def forward(x: Any, weights: Any) -> Any:
        losses = []
        for step, of_layer in zip(steps, weights, strict=True):
            x, found = step(x, *of_layer)
            losses.append(found)
        return tf.cast(x, output_dtype), losses

    channels_last = chain[0].data_format == "channels_last"
    shape = [None, None, None, input_channels] if channels_last else [None, input_channels, None, None]
    weights = []
    for config in chain:
        kernel = tf.TensorSpec([*config.kernel_size, None, config.filters], config.variable_dtype)
        bias = tf.TensorSpec([config.filters], config.variable_dtype)
        weights.append((kernel, bias) if config.use_bias else (kernel,))
    return tf.function(forward, input_signature=[tf.TensorSpec(shape, input_dtype), weights], autograph=False)


def _step(config: Conv2D, on_gpu: bool) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Returns one layer's part: (x, kernel[, bias]) to (output, losses)."""
    activation = keras_activation(config.activation)
    penalties: dict[str, Function] = {}
    for what in ("kernel", "bias", "activity"):
        regularizer = getattr(config, f"{what}_regularizer")
        # As in Keras: what is not trainable has no penalty on its weights.
        if regularizer is not None and (config.trainable or what == "activity"):
            penalties[what] = keras_regularizer(regularizer)

    def step(x: Any, kernel: Any, bias: Any = None) -> tuple[Any, dict[str, Any]]:
        losses = {}
        if "kernel" in penalties:
            losses["kernel"] = penalties["kernel"](kernel)
        if "bias" in penalties and bias is not None:
            losses["bias"] = penalties["bias"](bias)
        dtype = config.compute_dtype
        x = _convolved(config, tf.cast(x, dtype), tf.cast(kernel, dtype), bias, on_gpu)
        x = activation(x)
        if "activity" in penalties:
            total = penalties["activity"](x)
            losses["activity"] = tf.math.divide_no_nan(total, tf.cast(tf.shape(x)[0], total.dtype))
        return x, losses

    return step


def _convolved(config: Conv2D, x: Any, kernel: Any, bias: Any, on_gpu: bool) -> Any:
    """Returns conv2d(x, kernel) + bias in the layer's data format."""
    channels_first = config.data_format == "channels_first"
    # TensorFlow has no channels_first convolution for CPUs. The way back comes before the activation, because
    # activations such as softmax act along the last axis, whichever that is.
    transposed = channels_first and not on_gpu
    if transposed:
        x = tf.transpose(x, (0, 2, 3, 1))
    layout = "NCHW" if channels_first and not transposed else "NHWC"
    x = tf.nn.conv2d(
        x,
        kernel,
        strides=list(config.strides),
        padding=_padding(config, layout),
        data_format=layout,
        dilations=list(config.dilation_rate),
    )
    if bias is not None:
        bias = tf.cast(bias, config.compute_dtype)
        if config.groups == 1:
            x = tf.nn.bias_add(x, bias, data_format=layout)
        else:
            # TensorFlow would fuse bias_add with the convolution, and its fused kernel for CPUs refuses groups.
            x = tf.add(x, bias if layout == "NHWC" else tf.reshape(bias, (-1, 1, 1)))
    return tf.transpose(x, (0, 3, 1, 2)) if transposed else x


def _padding(config: Conv2D, layout: str) -> Any:
    if isinstance(config.padding, str):
        return config.padding.upper()
    rows, columns = ([*amounts] for amounts in config.padding)
    none = [0, 0]
    return [none, none, rows, columns] if layout == "NCHW" else [none, rows, columns, none]
