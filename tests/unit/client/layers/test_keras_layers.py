"""Keras' convolutions as Conv2Ds, from their configurations and weights alone; numbers are compared beside Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convserve
from convserve import activations
from convserve.activations import Activation
from convserve.constraints import MaxNorm, NonNeg
from convserve.layers.keras_layers import CONVOLUTIONS, activation_at_height, advice, convolutions

RNG = np.random.default_rng(0)


def weights(*shapes: tuple[int, ...]) -> list[Any]:
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


def layers(kind: str, given: list[Any] | None, **config: Any) -> list[convserve.Layer]:
    return [convserve.Layer(*each) for each in convolutions(kind, config, given)]


def test_a_depthwise_convolution_has_a_group_for_each_channel() -> None:
    kernel, bias = weights((3, 2, 4, 5), (20,))
    (layer,) = layers("DepthwiseConv2D", [kernel, bias], kernel_size=(3, 2), depth_multiplier=5, strides=2, name="d")
    assert layer.config == convserve.Conv2D(20, (3, 2), 2, groups=4, name="d")
    for channel in range(4):
        for number in range(5):
            np.testing.assert_array_equal(layer.kernel[:, :, 0, channel * 5 + number], kernel[:, :, channel, number])
    np.testing.assert_array_equal(layer.bias, bias)


def test_a_separable_convolution_is_two_in_a_row() -> None:
    depthwise, pointwise, bias = weights((3, 3, 2, 2), (1, 1, 4, 5), (5,))
    first, second = layers(
        "SeparableConv2D", [depthwise, pointwise, bias], filters=5, kernel_size=3, depth_multiplier=2, padding="same",
        dilation_rate=2, activation="relu", name="s", dtype="mixed_float16", depthwise_regularizer="l1",
        pointwise_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2", pointwise_constraint="non_neg",
        bias_constraint="non_neg", bias_initializer="ones", trainable=False,
    )  # fmt: skip
    shared = {"dtype": "mixed_float16", "trainable": False}
    assert first.config == convserve.Conv2D(
        4, 3, padding="same", dilation_rate=2, groups=2, use_bias=False, kernel_regularizer="l1", name="s_depthwise",
        **shared,
    )  # fmt: skip
    assert second.config == convserve.Conv2D(
        5, 1, activation="relu", kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2",
        kernel_constraint="non_neg", bias_constraint="non_neg", bias_initializer="ones", name="s_pointwise", **shared,
    )  # fmt: skip
    np.testing.assert_array_equal(second.kernel, pointwise)
    np.testing.assert_array_equal(second.bias, bias)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_one_of_rank_1_has_a_height_of_1(data_format: str) -> None:
    kernel, bias = weights((3, 2, 4), (4,))
    (layer,) = layers(
        "Conv1D", [kernel, bias], filters=4, kernel_size=[3], strides=(2,), groups=2, data_format=data_format
    )
    assert layer.config == convserve.Conv2D(4, (1, 3), (1, 2), groups=2, data_format=data_format)
    np.testing.assert_array_equal(layer.kernel, kernel[None])
    shape = (2, 1, 9, 4) if data_format == "channels_last" else (2, 4, 1, 9)
    assert layer.config.output_shape(shape)[1:] == ((1, 4, 4) if data_format == "channels_last" else (4, 1, 4))
    (first, _) = layers("SeparableConv1D", weights((3, 2, 1), (1, 2, 4)), filters=4, kernel_size=3, use_bias=False)
    assert first.config == convserve.Conv2D(2, (1, 3), groups=2, use_bias=False)


def test_causal_padding_is_what_comes_before() -> None:
    for kind, shapes in (("Conv1D", [(3, 2, 4)]), ("SeparableConv1D", [(3, 2, 1), (1, 2, 4)])):
        layer = layers(kind, weights(*shapes), filters=4, kernel_size=3, dilation_rate=4, padding="CAUSAL",
                       use_bias=False)[0]  # fmt: skip
        assert layer.config.padding == ((0, 0), (8, 0))
    for kind, given in (
        ("Conv2D", weights((3, 3, 2, 4))),
        ("DepthwiseConv1D", weights((3, 2, 1))),
        ("DepthwiseConv2D", weights((3, 3, 2, 1))),
    ):
        config = {"kernel_size": 3, "padding": "causal", "use_bias": False} | (
            {"filters": 4} if kind == "Conv2D" else {}
        )
        with pytest.raises(convserve.InvalidConfigurationError, match="padding: Expected"):
            convolutions(kind, config, given)
    with pytest.raises(convserve.InvalidConfigurationError, match="strides: Expected"):  # as Keras refuses it
        convolutions("Conv1D", {"filters": 4, "kernel_size": 3, "padding": "causal", "strides": 2, "dilation_rate": 2},
                     None)  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "data_format", "moved"),
    [(-1, "channels_last", -1), (1, "channels_last", 2), (2, "channels_last", 3), (-2, "channels_last", -2),
     (1, "channels_first", 1), (2, "channels_first", 3), (-1, "channels_first", -1), (-2, "channels_first", -3)],
)  # fmt: skip
def test_an_axis_of_rank_3_is_the_same_beside_the_height(axis: int, data_format: Any, moved: int) -> None:
    shape = (2, 5, 7)
    lifted = (2, 1, 5, 7) if data_format == "channels_last" else (2, 5, 1, 7)
    assert lifted[moved] == shape[axis]
    softmax = activations.Softmax(axis)
    assert activation_at_height(softmax, data_format) == activations.Softmax(moved)
    (layer,) = layers("Conv1D", weights((3, 2, 4), (4,)), filters=4, kernel_size=3, data_format=data_format,
                      activation=softmax)  # fmt: skip
    assert layer.config.activation == activations.Softmax(moved)


def test_an_axis_that_rank_3_does_not_have_is_refused() -> None:
    for axis in (3, -3):
        with pytest.raises(convserve.InvalidConfigurationError, match="axis: Expected an axis of an output"):
            activation_at_height(activations.Softmax(axis), "channels_last")
    assert activation_at_height(Activation.members["relu"](), "channels_first") == Activation.members["relu"]()


@pytest.mark.parametrize(
    ("axis", "channels", "multiplier", "moved"),
    [
        ((0,), 3, 2, (0, 2)),
        ((0, 1), 3, 2, (0, 1, 2)),
        ((0, 1, 2), 3, 1, (0, 1, 3)),
        ((0, 1, 3), 1, 2, (0, 1, 3)),
        ((-1, -2), 3, 2, (3,)),
        ((0, 1, 2), 1, 2, (0, 1, 2)),
    ],
)
def test_a_constraint_keeps_the_norms_that_it_takes(
    axis: tuple[int, ...], channels: int, multiplier: int, moved: tuple[int, ...]
) -> None:
    kernel, bias = weights((2, 3, channels, multiplier), (channels * multiplier,))
    (layer,) = layers("DepthwiseConv2D", [kernel, bias], kernel_size=(2, 3), depth_multiplier=multiplier,
                      depthwise_constraint=MaxNorm(1.0, axis))  # fmt: skip
    assert layer.config.kernel_constraint == MaxNorm(1.0, moved)
    before, after = (np.sqrt((array**2).sum(axis=axes, keepdims=True)) for array, axes in (
        (kernel, axis), (layer.kernel, moved)))  # fmt: skip
    np.testing.assert_allclose(
        np.broadcast_to(before, kernel.shape).reshape(layer.kernel.shape), np.broadcast_to(after, layer.kernel.shape),
        rtol=1e-6,
    )  # fmt: skip


def test_a_constraint_of_some_of_the_filters_is_left_out_with_a_word() -> None:
    given = weights((3, 3, 3, 2), (6,))
    config = {"kernel_size": 3, "depth_multiplier": 2, "depthwise_constraint": MaxNorm(1.0, (0, 1, 2))}
    with pytest.warns(UserWarning, match="^depthwise_constraint: left out"):
        ((made, _, _),) = convolutions("DepthwiseConv2D", config, given)
    assert made.kernel_constraint is None
    config["depthwise_constraint"] = NonNeg()
    assert convolutions("DepthwiseConv2D", config, given)[0][0].kernel_constraint == NonNeg()
    (layer,) = layers(
        "Conv1D", weights((3, 2, 4), (4,)), filters=4, kernel_size=3, kernel_constraint=MaxNorm(1, (0, -1))
    )
    assert layer.config.kernel_constraint == MaxNorm(1, (1, -1))


def test_what_keras_2_writes_besides_is_no_obstacle() -> None:
    old = {"kernel_size": [3, 3], "groups": 1, "batch_input_shape": [None, 8, 8, 2], "depth_multiplier": 1}
    convolutions("DepthwiseConv2D", old, weights((3, 3, 2, 1), (2,)))
    old |= {"filters": 4, "kernel_initializer": {"class_name": "GlorotUniform", "config": {}}}
    old |= {"kernel_regularizer": None, "kernel_constraint": None}
    convolutions("SeparableConv2D", old, weights((3, 3, 2, 1), (1, 1, 2, 4), (4,)))
    with pytest.raises(convserve.InvalidConfigurationError, match="Received groups too"):
        convolutions("DepthwiseConv2D", {"kernel_size": 3, "groups": 2}, weights((3, 3, 2, 1), (2,)))


def test_weights_that_are_not_drawn_yet() -> None:
    assert layers("Conv1D", None, filters=4, kernel_size=3)[0].kernel is None
    for kind in CONVOLUTIONS[1:3] + CONVOLUTIONS[4:]:
        config = {"kernel_size": 3} | ({"filters": 4} if kind.startswith("Separable") else {})
        with pytest.raises(convserve.InvalidConfigurationError, match=rf"layer: Expected a built {kind}.*build\("):
            convolutions(kind, config, None)


@pytest.mark.parametrize(
    ("kind", "config", "shapes", "field"),
    [
        ("Conv1D", {"filters": 4, "kernel_size": (1, 3)}, None, "kernel_size"),
        ("Conv1D", {"filters": 4, "kernel_size": 3, "strides": "2"}, None, "strides"),
        ("Conv1D", {"filters": 4, "kernel_size": 3, "padding": 1}, None, "padding"),
        ("Conv1D", {"filters": 4}, None, "kernel_size"),
        ("Conv2D", {"kernel_size": 3}, None, "filters"),
        ("Conv2D", {"filters": 4, "kernel_size": 3, "depth_multiplier": 1}, None, "config"),
        ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 0}, [(3, 3, 2, 1)], "depth_multiplier"),
        ("DepthwiseConv2D", {"kernel_size": 3, "depthwise_initializer": "no"}, [(3, 3, 2, 1)], "depthwise_initializer"),
        ("DepthwiseConv2D", {"kernel_size": 3, "strides": 2, "dilation_rate": 2}, [(3, 3, 2, 1)], "strides"),
        ("SeparableConv2D", {"filters": 4, "kernel_size": 3, "pointwise_regularizer": {"class_name": "L2", "config":
            {"l2": -1}}}, [(3, 3, 2, 1), (1, 1, 2, 4)], "pointwise_regularizer.l2"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_configuration_is_told_by_its_own_name(
    kind: str, config: dict[str, Any], shapes: Any, field: str
) -> None:
    with pytest.raises(convserve.InvalidConfigurationError) as caught:
        convolutions(kind, config, None if shapes is None else weights(*shapes))
    assert [each.field for each in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("kind", "config", "shapes", "text"),
    [
        ("Conv1D", {"filters": 4, "kernel_size": 3}, [(3, 3, 2, 4), (4,)], "kernel: Expected 3 dimensions"),
        ("Conv1D", {"filters": 4, "kernel_size": 3}, [(3, 2, 4)], "bias: Expected a bias"),
        ("DepthwiseConv2D", {"kernel_size": 3}, [(3, 3, 2, 2), (4,)], r"kernel: Expected shape .*depth_multiplier=1"),
        ("DepthwiseConv2D", {"kernel_size": 3}, [(3, 3, 0, 1), (0,)], "kernel: Expected 4 dimensions, none of them 0"),
        ("DepthwiseConv2D", {"kernel_size": 3}, [(3, 3, 2, 1), (3,)], r"bias: Expected shape \(2,\)"),
        ("SeparableConv2D", {"filters": 4, "kernel_size": 3}, [(3, 3, 2, 1)], "weights: Expected depthwise_kernel and"),
        ("SeparableConv2D", {"filters": 4, "kernel_size": 3, "use_bias": False}, [(3, 3, 2, 1), (1, 1, 2, 3)],
         "kernel: Expected shape"),
        ("Conv2D", {"filters": 4, "kernel_size": 3}, [(3, 3, 2, 4), (4,), (1,)], "weights: Expected kernel, and a"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(kind: str, config: dict[str, Any], shapes: Any, text: str) -> None:
    with pytest.raises(convserve.InvalidWeightsError, match=text):
        layers(kind, weights(*shapes), **config)


@pytest.mark.parametrize("kind", ["Conv2DTranspose", "Conv1DTranspose", "Conv3D", "LocallyConnected2D", "ConvLSTM2D"])
def test_what_no_conv2d_computes_is_refused_with_advice(kind: str) -> None:
    with pytest.raises(convserve.InvalidConfigurationError, match=rf"Expected one of Conv2D, .*{kind}\. .*locally\."):
        convolutions(kind, {}, None)
    assert advice("MaxPooling2D") == ""
