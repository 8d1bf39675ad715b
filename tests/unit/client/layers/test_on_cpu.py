"""Which layers a server computes in float64, and that a plan has the memory for it."""

import pytest

import convserve
from convserve.layers.on_cpu import in_float64, with_even_channels
from convserve.layers.plan import plan

WIDE = ((0, 0), (4, 0))


@pytest.mark.parametrize(
    ("expected", "channels", "kernel", "strides", "changes"),
    [
        (None, 1, (1, 5), (1, 2), {}),
        (None, 1, (1, 5), (1, 2), {"padding": "same", "data_format": "channels_first"}),
        (None, 3, (2, 1), (3, 1), {}),
        (None, 16, (1, 4), (1, 4), {"dtype": "bfloat16"}),
        (None, 24, (7, 4), (2, 4), {"dtype": "mixed_bfloat16", "data_format": "channels_first"}),
        (False, 16, (1, 4), (1, 4), {"dtype": "float16"}),
        (True, 1, (1, 3), (2, 1), {}),
        (True, 3, (3, 3), (1, 1), {"padding": WIDE}),
        (True, 3, (1, 3), (2, 1), {"groups": 3, "dtype": "mixed_bfloat16"}),
        (False, 3, (1, 3), (2, 1), {"groups": 3}),
        (False, 3, (1, 5), (1, 2), {}),
        (False, 1, (3, 3), (2, 1), {}),
        (False, 3, (1, 1), (2, 2), {}),  # as in residual networks
        (False, 3, (3, 3), (1, 1), {"padding": WIDE, "dilation_rate": (1, 2)}),
        (False, 1, (1, 3), (2, 1), {"dtype": "float64"}),
    ],
)
def test_what_onednn_errs_at_is_computed_in_float64(expected, channels, kernel, strides, changes):
    config = convserve.Conv2D(3, kernel, strides=strides, **{"dtype": "float32", **changes})
    assert in_float64(config, channels) is expected


@pytest.mark.parametrize(
    ("expected", "channels", "changes"),
    [
        (True, 3, {}),
        (True, 1, {}),
        (True, 6, {"groups": 2}),
        (True, 3, {"groups": 3}),
        (False, 4, {}),
        (False, 6, {"groups": 6}),  # depthwise
        (False, 3, {"dtype": "float32"}),
        (False, 3, {"dtype": "float16"}),
    ],
)
def test_an_odd_number_of_channels_is_made_even_in_bfloat16(expected, channels, changes):
    config = convserve.Conv2D(**{"filters": 6, "kernel_size": 3, "dtype": "mixed_bfloat16", **changes})
    assert with_even_channels(config, channels) is expected


def test_a_plan_has_the_memory_of_float64_where_the_width_decides():
    config = convserve.Conv2D(1, (1, 5), strides=(1, 2), use_bias=False, data_format="channels_last", dtype="float32")
    one, two = (plan([config], (1, 10**6, width, 1), drawn=[False]) for width in (6, 7))
    assert one.memory_bytes - one.input_bytes - one.output_bytes >= 3 * (one.input_bytes + one.output_bytes)
    assert two.memory_bytes - two.input_bytes - two.output_bytes < 1.1 * (two.input_bytes + two.output_bytes)
