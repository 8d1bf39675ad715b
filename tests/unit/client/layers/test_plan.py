"""Plans: shapes, weights, operations and bytes, by arithmetic alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convserve import Conv2D, InvalidTensorError, Layer, activations
from convserve.layers.layer import planned
from convserve.layers.plan import plan


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kernel_size": 1}, (4, 600, 600, 64)),
        ({"kernel_size": 2}, (4, 599, 599, 64)),
        ({"kernel_size": 1, "strides": 2}, (4, 300, 300, 64)),
        ({"kernel_size": 1, "strides": 2, "padding": "same"}, (4, 300, 300, 64)),
        ({"kernel_size": 3, "strides": 2, "padding": "same"}, (4, 300, 300, 64)),
        ({"kernel_size": 3, "padding": "same"}, (4, 600, 600, 64)),
        ({"kernel_size": 3}, (4, 598, 598, 64)),
        ({"kernel_size": 3, "dilation_rate": 2}, (4, 596, 596, 64)),
        ({"kernel_size": 3, "strides": 2, "padding": ((1, 1), (1, 1))}, (4, 300, 300, 64)),
        ({"kernel_size": 3, "padding": ((0, 5), (7, 0))}, (4, 603, 605, 64)),
        ({"kernel_size": 3, "strides": 2, "dilation_rate": 2, "padding": 0}, (4, 298, 298, 64)),
        ({"kernel_size": 3, "strides": (3, 2), "dilation_rate": (2, 4), "padding": (1, 4)}, (4, 200, 300, 64)),
        ({"kernel_size": 1, "activation": "glu"}, (4, 600, 600, 32)),
    ],
)
def test_output_shape(given: dict[str, object], expected: tuple[int, ...]) -> None:
    conv2d = Conv2D(64, **given, data_format="channels_last")  # type: ignore[arg-type]
    assert conv2d.output_shape((4, 600, 600, 3)) == expected


def test_channels_first_shape() -> None:
    conv2d = Conv2D(64, (3, 5), strides=(1, 2), data_format="channels_first")
    assert conv2d.output_shape((2, 3, 20, 21)) == (2, 64, 18, 9)
    # As in Keras, glu's last axis is then the width.
    assert conv2d.replace(activation="glu", strides=(1, 1)).output_shape((2, 3, 20, 20)) == (2, 64, 18, 8)


def test_amounts_of_a_layer_worked_out_by_hand() -> None:
    found = Conv2D(8, 3, groups=2, dtype="mixed_float16", data_format="channels_last").plan(
        (2, 10, 12, 4), input_dtype="uint8", output_dtype="float64"
    )
    kernel = 3 * 3 * 2 * 8
    places = 2 * 8 * 10
    assert found.layers[0].kernel_shape == (3, 3, 2, 8)
    assert found.parameters == kernel + 8
    assert found.flops == places * (2 * kernel + 8)
    assert found.input_bytes == 2 * 10 * 12 * 4
    assert found.weight_bytes == 4 * (kernel + 8)  # kept in float32
    assert found.output_bytes == places * 8 * 8
    held_in_float16 = 2 * 3 * (2 * 10 * 12 * 4 + kernel + 8 + places * 8)  # a copy in 32 bits
    held = found.input_bytes + found.weight_bytes + held_in_float16 + found.output_bytes
    assert found.memory_bytes == held + 2 * found.weight_bytes  # which the server draws
    assert found.admitted is None


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, 4 * (100 + 2 + 200)),
        ({"activation": "relu"}, 4 * (100 + 2 + 200)),
        ({"activation": "sparsemax"}, 4 * 5 * 200),
        ({"activation": activations.ReLU(0.1)}, 4 * 3 * 200),
        ({"activity_regularizer": "l1"}, 4 * 2 * 200),
        ({"dtype": "float16"}, 2 * 3 * (100 + 2 + 200)),  # a copy in 32 bits
        ({"dtype": "bfloat16", "activation": "sparsemax"}, 2 * 5 * 200),
        ({"dtype": "float64"}, 8 * (100 + 2 + 200)),
        ({"data_format": "channels_first"}, 4 * 2 * 200),  # and channels_last
    ],
)
def test_what_a_layer_holds_between_its_input_and_output_counts(changes: dict[str, Any], held: int) -> None:
    config = Conv2D(2, 1, **{"use_bias": False, "dtype": "float32", "data_format": "channels_last", **changes})
    shape = (1, 10, 10, 1) if config.data_format == "channels_last" else (1, 1, 10, 10)
    found = plan([config], shape, drawn=[False])
    assert found.memory_bytes - found.input_bytes - found.weight_bytes - found.output_bytes == held


def test_weights_that_the_server_draws_are_the_calls_own_and_drawing_the_largest_takes_more() -> None:
    one, two = Conv2D(8, 3, data_format="channels_last"), Conv2D(4, 1, data_format="channels_last")
    orthogonal = two.replace(kernel_initializer="orthogonal")

    def drawn(*drawn: bool, of: Conv2D = two) -> int:
        plans = (plan([one, of], (1, 9, 9, 3), drawn=each).memory_bytes for each in (drawn, (False, False)))
        return next(plans) - next(plans)

    sizes = 4 * (3 * 3 * 3 * 8 + 8), 4 * (8 * 4 + 4)
    assert drawn(True, False) == 2 * sizes[0]
    assert drawn(False, True) == 2 * sizes[1]
    assert drawn(True, True) == sum(sizes) + sizes[0]
    assert drawn(False, True, of=orthogonal) == 6 * sizes[1]
    weights = np.ones((3, 3, 3, 8), "f4"), np.ones(8, "f4")
    given, asked = (planned([Layer(one, *each)], (1, 9, 9, 3), "float32", None) for each in (weights, ()))
    assert asked == one.plan((1, 9, 9, 3))
    assert asked.memory_bytes - given.memory_bytes == 2 * sizes[0]


def test_chain_passes_each_output_on() -> None:
    first, second = Conv2D(8, 3, data_format="channels_last"), Conv2D(4, 1, strides=2, data_format="channels_last")
    found = plan([first, second], (1, 9, 9, 3))
    assert [layer.output_shape for layer in found.layers] == [(1, 7, 7, 8), (1, 4, 4, 4)]
    assert found.output_shape == (1, 4, 4, 4)
    assert found.flops == sum(layer.flops for layer in found.layers)
    with pytest.raises(InvalidTensorError, match=r"layers\[1\]\.groups"):
        plan([first, second.replace(groups=3, filters=3)], (1, 9, 9, 3))


def test_an_array_of_integers_is_a_shape() -> None:
    conv2d = Conv2D(2, 3, data_format="channels_last")
    assert conv2d.output_shape(np.array([1, 8, 8, 3])) == (1, 6, 6, 2)  # type: ignore[arg-type]
    with pytest.raises(InvalidTensorError, match="Expected a shape of integers"):
        conv2d.output_shape(np.array([1.0, 8.0, 8.0, 3.0]))  # type: ignore[arg-type]


def test_input_shape_of_the_layer_stands_in_for_one_sample() -> None:
    conv2d = Conv2D(2, 3, input_shape=(8, 8, 1), data_format="channels_last")
    assert conv2d.plan().output_shape == (1, 6, 6, 2)
    with pytest.raises(InvalidTensorError, match="input_shape"):
        conv2d.replace(input_shape=(8, None, 1)).plan()


@pytest.mark.parametrize(
    ("given", "shape", "words"),
    [
        ({}, (8, 8, 3), r"Expected 4 dimensions.*Received 3: .* x\[None\] is a batch of one sample"),
        ({"data_format": "channels_last"}, (8, 8), r"x\[None, :, :, None\] is a batch of one sample of one channel"),
        ({"data_format": "channels_first"}, (8, 8), r"x\[None, None\] is a batch of one sample of one channel"),
        ({}, (1, 1, 8, 8, 3), "Expected 4 dimensions"),
        ({}, (None, 8, 8, 3), r"Expected a shape of integers. Received \(None, 8, 8, 3\)"),
        ({}, (1.9, 8, 8, 3), "Expected a shape of integers"),
        ({}, (1, "8", 8, 3), "Expected a shape of integers"),
        ({}, 5, "Expected a shape of integers. Received 5"),
        ({}, (True, 8, 8, 3), "at least 1"),
        ({}, (0, 8, 8, 3), "at least 1"),
        ({}, (1, 8, 8, -3), "at least 1"),
        ({}, (1, 2, 8, 3), "height of at least 3"),
        ({}, (1, 8, 2, 3), "width of at least 3"),
        ({"dilation_rate": 4}, (1, 8, 8, 3), "at least 9"),
        ({"padding": ((1, 0), (0, 0))}, (1, 1, 8, 3), "1 rows of padding"),
        ({"strides": 2, "dilation_rate": 4, "padding": 0}, (1, 8, 8, 3), r"at least 9,.* height 8 [^.]*\.$"),
        ({"groups": 2}, (1, 8, 8, 3), "groups: .*divides the input's channels"),
        ({"filters": 5, "activation": "glu"}, (1, 8, 8, 3), "activation: .*even"),
        ({"filters": 256, "dtype": "bfloat16", "activation": "sparsemax"}, (1, 8, 8, 3), "in bfloat16, up to 255"),
        ({"filters": 2049, "dtype": "mixed_float16", "activation": "sparsemax"}, (1, 8, 8, 3), "float16, up to 2047"),
        ({"filters": 2**17, "dtype": "float16", "activation": "sparsemax"}, (1, 8, 8, 3), "Received 131072"),
        ({}, (2**40, 2**40, 8, 3), r"2\*\*63"),
        ({"filters": 2**31 - 1, "kernel_size": 2**31 - 1, "padding": "same"}, (1, 8, 8, 2**20), r"2\*\*63"),
    ],
)
def test_inputs_that_the_layer_cannot_take(given: dict[str, object], shape: Any, words: str) -> None:
    conv2d = Conv2D(**{"filters": 4, "kernel_size": 3, "data_format": "channels_last", **given})  # type: ignore[arg-type]
    with pytest.raises(InvalidTensorError, match=words):
        conv2d.plan(shape)
