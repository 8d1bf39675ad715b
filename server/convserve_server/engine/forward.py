"""The forward pass of a chain of layers as one traced TensorFlow function.

Weights are arguments and batch, height and width are open, so that all layers of one geometry, and all sizes of image,
share one trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from convserve.layers.arguments import Pair
from convserve.layers.conv2d import Conv2D
from convserve.layers.on_cpu import onednn_computes
from convserve_server.engine import onednn
from convserve_server.engine.keras_objects import Function, keras_activation, keras_object
from convserve_server.engine.tensors import carrier, direct_call

_MAX_DEPTHWISE_TAPS = 1024
_MAX_PADDED = 1.5  # times an image that is padded, which TensorFlow's depthwise convolution copies


class Forward:
    """A traced forward pass; it may be called from any thread and on any device of the kind that it was traced for."""

    def __init__(
        self, chain: Sequence[Conv2D], channels: Sequence[int], input_dtype: str, output_dtype: str, on_gpu: bool
    ) -> None:
        """Traces a chain; it reads of a configuration only geometry, activation, regularizers and dtypes.

        `channels` are each layer's input's. They are no property of the chain alone: where data formats are mixed, a
        layer's channels are the rows of the image before it.
        """
        names: list[tuple[str, ...]] = []

        def forward(x: Any, *weights: Any) -> list[Any]:
            names.clear()  # should TensorFlow trace more than once
            x, rest = _as(x, input_dtype), list(weights)
            losses: list[Any] = []
            for config, own in zip(chain, channels, strict=True):
                given, rest = rest[: 1 + config.use_bias], rest[1 + config.use_bias :]
                x.set_shape(
                    [None, None, None, own] if config.data_format == "channels_last" else [None, own, None, None]
                )
                x, layer_losses = _step(config, on_gpu)(x, *given)
                names.append(tuple(layer_losses))
                losses += layer_losses.values()
            x = tf.cast(x, output_dtype)
            return [_as(x, carrier(output_dtype)), *losses]

        signature = [tf.TensorSpec([None] * 4, carrier(input_dtype))]
        for config, own in zip(chain, channels, strict=True):
            kernel = [*config.kernel_size, own // config.groups, config.filters]
            signature.append(tf.TensorSpec(kernel, config.variable_dtype))
            if config.use_bias:
                signature.append(tf.TensorSpec([config.filters], config.variable_dtype))
        function = tf.function(forward, input_signature=signature, autograph=False)
        self.call = direct_call(function.get_concrete_function())
        """Takes x, kernels and biases, x in its carrier dtype; returns the output, as x, and every layer's losses."""
        self.loss_names = tuple(names)
        """For each layer the names of its losses, which are fields of `Losses`."""


def _as(x: Any, dtype: str) -> Any:
    """Returns a tensor with its bits read as another dtype of the same size."""
    return x if x.dtype.name == dtype else tf.bitcast(x, dtype)


def _step(config: Conv2D, on_gpu: bool) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Returns one layer's part: (x, kernel[, bias]) to (output, losses)."""
    activation = keras_activation(config.activation)
    regularizers = {what: config.weight_penalty(what) for what in ("kernel", "bias")}
    regularizers["activity"] = config.activity_regularizer
    penalties: dict[str, Function] = {
        what: keras_object(each) for what, each in regularizers.items() if each is not None
    }

    def step(x: Any, kernel: Any, bias: Any = None) -> tuple[Any, dict[str, Any]]:
        weights = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
        losses = {name: penalties[name](weight) for name, weight in weights.items() if name in penalties}
        dtype = config.compute_dtype
        x = activation(_convolved(config, tf.cast(x, dtype), tf.cast(kernel, dtype), bias, on_gpu))
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
    strides, dilations = list(config.strides), list(config.dilation_rate)

    def dense(x: Any, kernel: Any) -> Any:
        return tf.nn.conv2d(x, kernel, strides, _padding(config, layout), data_format=layout, dilations=dilations)

    def on_cpu(x: Any, kernel: Any) -> Any:
        if not _is_depthwise(config, x):
            return dense(x, kernel)
        if max(dilations) == 1 and isinstance(config.padding, str):
            return _depthwise(config, x, kernel)
        little = _is_padded_little(config, x)
        return tf.cond(little, lambda: _depthwise(config, x, kernel), lambda: dense(x, kernel))

    y = dense(x, kernel) if on_gpu else onednn.rightly(on_cpu, config, x, kernel)
    if bias is not None:
        bias = tf.cast(bias, config.compute_dtype)
        if config.groups == 1:
            y = tf.nn.bias_add(y, bias, data_format=layout)
        else:
            # TensorFlow would fuse bias_add with the convolution, and its fused kernel for CPUs refuses groups.
            y = tf.add(y, bias if layout == "NHWC" else tf.reshape(bias, (-1, 1, 1)))
    return tf.transpose(y, (0, 3, 1, 2)) if transposed else y


def _is_depthwise(config: Conv2D, x: Any) -> bool:
    """Returns whether each channel is a group, and TensorFlow's depthwise convolution can and may stand in.

    On a CPU it is 3 to 20 times as fast as a grouped one, which goes group by group. In 16 bits it adds up in 16 bits,
    the grouped one in 32, as does Keras. It copies a kernel for each thread. oneDNN's grouped one is as fast, and takes
    strides with dilation as they are.
    """
    may = config.compute_dtype in ("float32", "float64") and math.prod(config.kernel_size) <= _MAX_DEPTHWISE_TAPS
    if config.strides_and_dilates and onednn_computes() and x.dtype != "float64":
        return False
    _, strides, dilations = _thinned(config)
    steps = strides[0] == strides[1] and 1 in (max(strides), max(dilations))  # all that it has
    return may and config.groups == x.shape[3] > 1 and steps


def _is_padded_little(config: Conv2D, x: Any) -> Any:
    """Returns a boolean tensor: whether the copies that `_depthwise` makes of an NHWC input are about as large as that.

    They have the padding, and with dilation a multiple of it as height and width: a large one is a bomb. Where rows and
    columns are left out they are smaller.
    """
    size, padded = tf.cast(tf.shape(x)[1:3], "float64"), []
    for direction, (kernel, dilation) in enumerate(zip(config.kernel_size, config.dilation_rate, strict=True)):
        total = (kernel - 1) * dilation if config.padding == "same" else 0
        if not isinstance(config.padding, str):
            total = sum(config.padding[direction])
        padded.append(tf.math.ceil((size[direction] + total) / dilation) * dilation)
    return padded[0] * padded[1] <= _MAX_PADDED * size[0] * size[1]


def _depthwise(config: Conv2D, x: Any, kernel: Any) -> Any:
    """Returns the convolution of an NHWC input with a kernel of (height, width, 1, channels * filters per channel)."""
    padding = _padding(config, "NHWC")
    if max(config.dilation_rate) > 1 and not isinstance(padding, str):  # which TensorFlow does not take together
        x, padding = tf.pad(x, padding), "VALID"
    steps, strides, dilations = _thinned(config)
    for axis, step in enumerate(steps, 1):
        if step > 1:  # a strided slice would take longer than all the rest
            x = tf.gather(x, tf.range(0, tf.shape(x)[axis], step), axis=axis)
    kernel = tf.reshape(kernel, (*config.kernel_size, config.groups, config.filters // config.groups))
    dilated = dilations if max(dilations) > 1 else None
    return tf.nn.depthwise_conv2d(x, kernel, (1, *strides, 1), padding, dilations=dilated)


def _thinned(config: Conv2D) -> tuple[Pair, Pair, Pair]:
    """Returns how many rows and columns to go on from each that is read, and strides and dilations among these alone.

    Where a stride and a dilation have a common divisor, every window starts and goes on by multiples of it.
    """
    steps = [math.gcd(*each) for each in zip(config.strides, config.dilation_rate, strict=True)]
    strides, dilations = (
        (height // steps[0], width // steps[1]) for height, width in (config.strides, config.dilation_rate)
    )
    return (steps[0], steps[1]), strides, dilations


def _padding(config: Conv2D, layout: str) -> Any:
    if isinstance(config.padding, str):
        return config.padding.upper()
    rows, columns = ([*amounts] for amounts in config.padding)
    none = [0, 0]
    return [none, none, rows, columns] if layout == "NCHW" else [none, rows, columns, none]
