"""What a server computes, computed by Keras in this process: gradients for the input of a frozen layer need it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from convserve.keras.layers.steps import Step, Steps, by_step


def computed_here(steps: Steps, x: Any, *weights: Any) -> Any:
    """Returns what steps compute, with tensors as weights."""
    for step, own in by_step(steps, weights):
        x = tf.cast(x, step.compute_dtype)
        if step.convolves:
            x = _convolved(step, x, own)
        elif step.kind == "BatchNormalization":
            x = _normalized(step, x, own)
        else:
            x = getattr(keras.layers, step.kind)(**step.given, dtype=step.policy).call(x)
    return x


def _convolved(step: Step, x: Any, weights: list[Any]) -> Any:
    given = step.given
    is_first = given["data_format"] == "channels_first"  # of which TensorFlow has no convolution for CPUs
    rank = len(x.shape)
    last, first = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    x = tf.transpose(x, last) if is_first else x
    cast = [tf.cast(weight, step.compute_dtype) for weight in weights]
    kernels, bias = (cast[:-1], cast[-1]) if given["use_bias"] else (cast, None)
    padding = given["padding"]
    if padding == "causal":
        before = given["dilation_rate"][0] * (given["kernel_size"][0] - 1)
        x, padding = tf.pad(x, ((0, 0), (before, 0), (0, 0))), "valid"
    compute = keras.ops.conv
    if step.kind not in ("Conv1D", "Conv2D"):
        compute = keras.ops.depthwise_conv if len(kernels) == 1 else keras.ops.separable_conv
    options = {"strides": given["strides"], "padding": padding, "dilation_rate": given["dilation_rate"]}
    x = compute(x, *kernels, **options, data_format="channels_last")
    x = x if bias is None else x + bias
    x = tf.transpose(x, first) if is_first else x
    return keras.activations.get(given["activation"])(x)


def _normalized(step: Step, x: Any, weights: list[Any]) -> Any:
    given = step.given
    named = dict(zip(step.weights, weights, strict=True))
    statistics = named["moving_mean"], named["moving_variance"]
    wide = tf.cast(x, weights[0].dtype)  # as Keras does, narrow dtypes being prone to overflow
    normalized = keras.ops.batch_normalization(
        wide, *statistics, given["axis"], named.get("beta"), named.get("gamma"), given["epsilon"]
    )
    return tf.cast(normalized, step.compute_dtype)
