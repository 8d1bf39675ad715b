"""Chains of layers with integers as weights, and an input, for property tests: all sums are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from convserve import Conv2D, InvalidArgumentError, Layer
from convserve.regularizers import Regularizer

_ACTIVATIONS = st.sampled_from(["linear", "linear", "relu", ("softmax", 3), ("softmax", 1), ("glu", 2), ("glu", -3)])
_PADDINGS = st.one_of(
    st.sampled_from(["valid", "same"]),
    st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)) for _ in range(2))),
)


@st.composite
def chains(draw: Any) -> tuple[list[Layer], Any]:
    """Draws one to three layers and an input that they take."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 14)), draw(st.integers(1, 6)), draw(st.integers(1, 4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = random.integers(-3, 4, shape).astype(draw(st.sampled_from(["f4", "i1"])))
    layers: list[Layer] = []
    data_format = draw(st.sampled_from(["channels_last", "channels_first"]))
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 9)) == 0:
            data_format = {"channels_last": "channels_first", "channels_first": "channels_last"}[data_format]
        channels = shape[3 if data_format == "channels_last" else 1]
        config = draw(_configs(data_format, channels))
        try:
            shape = config.output_shape(shape)
        except InvalidArgumentError:  # the window, or glu, does not suit what is left of the image
            config = config.replace(padding="same", dilation_rate=1, activation="linear")
            shape = config.output_shape(shape)
        kernel = random.integers(-2, 3, (*config.kernel_size, channels // config.groups, config.filters)).astype("f4")
        bias = random.integers(1, 4, config.filters).astype("f4") if config.use_bias else None
        layers.append(Layer(config, kernel, bias))
    return layers, x


@st.composite
def _configs(draw: Any, data_format: str, channels: int) -> Conv2D:
    groups = draw(st.sampled_from([each for each in (1, 2, channels) if channels % each == 0]))
    padding = draw(_PADDINGS)
    steps = [((1, 1), (1, 1)), ((2, 1), (1, 1)), ((3, 2), (1, 1)), ((1, 1), (2, 1)), ((1, 1), (3, 2))]
    if not isinstance(padding, str):
        steps += [((2, 2), (2, 2)), ((3, 1), (2, 3)), ((1, 2), (2, 1))]
    stride, dilation = draw(st.sampled_from(steps))
    activation = draw(_ACTIVATIONS)
    if isinstance(activation, tuple):
        activation = {"class_name": activation[0], "config": {"axis": activation[1]}}
    regularizer = st.sampled_from([None, None, None, Regularizer.members["l1"](0.5), Regularizer.members["l2"](0.25)])
    return Conv2D(
        groups * draw(st.integers(1, 2)),
        (draw(st.integers(1, 4)), draw(st.integers(1, 3))),
        stride,
        padding,
        data_format,
        dilation,
        groups,
        activation,
        draw(st.booleans()),
        kernel_regularizer=draw(regularizer),
        activity_regularizer=draw(regularizer),
        dtype="float64",
    )


def assert_same(found: Any, expected: Any, layers: list[Layer]) -> None:
    """Asserts that outputs are equal: to the bit where all numbers are integers."""
    if any(each.config.activation.keras_name == "softmax" for each in layers):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    else:
        np.testing.assert_array_equal(found, expected)
