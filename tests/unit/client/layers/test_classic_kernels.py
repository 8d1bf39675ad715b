"""The classic kernels: their values' properties, and what they do to a picture."""

import numpy as np
import pytest

from convserve import Conv2D, InvalidArgumentError, InvalidConfigurationError, InvalidTensorError, Layer
from convserve.layers.classic_kernels import CLASSIC_KERNELS, classic_kernel
from convserve.protocol.stored_layers import layer_to_put


def correlated(picture, kernel):
    """Returns the "valid" cross-correlation of two rank-2 arrays."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, kernel.shape)
    return np.einsum("hwij,ij->hw", windows, kernel)


def test_the_names_are_those_that_the_documentation_lists():
    assert list(CLASSIC_KERNELS) == ["sobel-x", "sobel-y", "laplacian", "gaussian", "sharpen", "emboss", "box"]


@pytest.mark.parametrize("name", CLASSIC_KERNELS)
def test_shape_and_dtype_suit_a_layer_with_one_group_per_channel(name):
    kernel = classic_kernel(name, 3)
    height, width = CLASSIC_KERNELS[name].values.shape
    assert kernel.shape == (height, width, 1, 3)
    assert kernel.dtype == np.float32
    for channel in range(3):
        np.testing.assert_array_equal(kernel[:, :, 0, channel], CLASSIC_KERNELS[name].values)


@pytest.mark.parametrize(
    ("name", "total"),
    [("sobel-x", 0), ("sobel-y", 0), ("laplacian", 0), ("gaussian", 1), ("sharpen", 1), ("emboss", 1), ("box", 1)],
)
def test_sums_say_what_becomes_of_a_flat_picture(name, total):
    assert float(CLASSIC_KERNELS[name].values.sum(dtype=np.float64)) == pytest.approx(total, abs=1e-6)


def test_gaussian_is_the_binomial_in_both_directions():
    gaussian = CLASSIC_KERNELS["gaussian"].values
    assert gaussian.shape == (5, 5)
    assert gaussian[2, 2] == 36 / 256
    assert gaussian[0, 0] == 1 / 256
    np.testing.assert_array_equal(gaussian, gaussian.T)


def test_sobel_is_positive_where_brightness_rises_in_its_direction():
    rising = np.tile(np.arange(6.0), (5, 1))  # brighter to the right
    np.testing.assert_array_equal(correlated(rising, CLASSIC_KERNELS["sobel-x"].values), np.full((3, 4), 8.0))
    np.testing.assert_array_equal(correlated(rising, CLASSIC_KERNELS["sobel-y"].values), np.zeros((3, 4)))
    np.testing.assert_array_equal(correlated(rising.T, CLASSIC_KERNELS["sobel-y"].values), np.full((4, 3), 8.0))


def test_laplacian_of_a_parabola_is_its_second_derivative():
    parabola = np.add.outer(np.arange(6.0) ** 2, np.zeros(6))
    np.testing.assert_array_equal(correlated(parabola, CLASSIC_KERNELS["laplacian"].values), np.full((4, 4), 2.0))


def test_the_table_cannot_be_changed_through_what_is_returned():
    classic_kernel("box", 1)[:] = 7
    assert CLASSIC_KERNELS["box"].values.max() < 1
    with pytest.raises(ValueError, match="read-only"):
        CLASSIC_KERNELS["box"].values[0, 0] = 7


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InvalidConfigurationError, match=r"Received 'sobelx'. Did you mean 'sobel-x'\?") as caught:
        classic_kernel("sobelx", 3)
    assert caught.value.violations[0].field == "kernel"
    assert "laplacian" in str(caught.value)


def test_a_name_like_no_other_gets_no_hint():
    with pytest.raises(InvalidConfigurationError) as caught:
        classic_kernel("zzz", 3)
    assert "Did you mean" not in str(caught.value)


def test_an_input_has_at_least_one_channel():
    with pytest.raises(InvalidConfigurationError, match="Received 0"):
        classic_kernel("box", 0)


# By name, wherever a kernel is taken


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [((2, 7, 8, 3), {"data_format": "channels_last"}), ((2, 3, 7, 8), {"data_format": "channels_first", "strides": 2})],
)
def test_a_name_filters_each_channel_of_the_input(shape, parameters):
    layer = Layer.from_arguments(None, None, "gaussian", None, None, parameters, np.zeros(shape))
    assert (layer.config.filters, layer.config.groups, layer.config.kernel_size) == (3, 3, (5, 5))
    assert not layer.config.use_bias
    np.testing.assert_array_equal(layer.kernel, classic_kernel("gaussian", 3))
    assert layer.config == Conv2D(3, 5, groups=3, use_bias=False, **parameters)


def test_a_name_takes_its_channels_from_an_input_shape_where_there_is_no_input():
    given = {"input_shape": (None, None, 4), "data_format": "channels_last"}
    assert Layer.from_arguments(None, None, "box", None, None, given).input_channels == 4
    for missing in ({}, {"input_shape": (4, 4, None), "data_format": "channels_last"}):
        with pytest.raises(InvalidConfigurationError, match=r"kernel: Expected an array, or the name .* 'box' alone"):
            Layer.from_arguments(None, None, "box", None, None, missing)


def test_a_layer_takes_a_name_too():
    config = Conv2D(3, 3, groups=3, padding="same")
    layer = Layer(config, "sobel-x", [1, 2, 3])
    assert layer.digest == Layer(config, classic_kernel("sobel-x", 3), np.float32([1, 2, 3])).digest
    stored = layer_to_put(config.replace(use_bias=False), "sobel-x", None, None, 3)
    np.testing.assert_array_equal(stored.kernel, layer.kernel)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kernel": "sobelx"}, r"kernel: .*Did you mean 'sobel-x'\?"),
        ({"kernel": "blur"}, "kernel: Expected one of sobel-x, sobel-y"),
        ({"filters": 6}, r"filters and groups both the input's channels, and kernel_size=\(3, 3\), for 'sobel-x'"),
        ({"kernel_size": 5}, r"Received filters=3, groups=3 and kernel_size=\(5, 5\)"),
        ({"groups": 1}, "Received filters=3, groups=1"),
        ({"use_bias": True}, "bias: Expected a bias"),
    ],
)
def test_what_contradicts_a_name_is_told(given, words):
    filters, size, kernel = given.pop("filters", None), given.pop("kernel_size", None), given.pop("kernel", "sobel-x")
    with pytest.raises(InvalidArgumentError, match=words):
        Layer.from_arguments(filters, size, kernel, None, None, given, np.zeros((1, 5, 5, 3)))


def test_a_name_for_an_input_of_a_wrong_rank_is_told_as_ever():
    layer = Layer.from_arguments(None, None, "box", None, None, {}, np.zeros((5, 5, 3)))
    with pytest.raises(InvalidTensorError, match="Expected 4 dimensions"):
        layer.config.plan((5, 5, 3))
