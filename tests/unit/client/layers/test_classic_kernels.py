"""The classic kernels: their values' properties, and what they do to a picture."""

import numpy as np
import pytest

from convserve.errors import InvalidConfigurationError
from convserve.layers.classic_kernels import CLASSIC_KERNELS, classic_kernel


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
