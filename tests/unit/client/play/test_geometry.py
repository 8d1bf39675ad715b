"""Windows, sums and formulas, against a convolution that is written out here."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.layers.conv2d import Conv2D
from convserve.play.convolution import formulas
from convserve.play.convolution.windows import padding_of, written_sum


@st.composite
def geometries(draw):
    groups, depth = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    amounts = st.tuples(st.integers(0, 2), st.integers(0, 2))
    strides, padding = draw(pairs), draw(st.sampled_from(["valid", "same", "explicit"]))
    padding = (draw(amounts), draw(amounts)) if padding == "explicit" else padding
    dilation_rate = draw(pairs) if max(strides) == 1 or not isinstance(padding, str) else (1, 1)
    conv2d = Conv2D(
        groups * draw(st.integers(1, 2)), draw(pairs), strides, padding, "channels_last", dilation_rate, groups
    )
    return conv2d, draw(st.integers(7, 9)), draw(st.integers(7, 9)), groups * depth


def reference(conv2d, x, kernel, bias):
    """Convolves by shifting the whole padded input for each of the kernel's weights."""
    height, width, channels = x.shape
    padding = padding_of(conv2d, height, width)
    padded = np.pad(x, ((padding.top, padding.bottom), (padding.left, padding.right), (0, 0)))
    rows, columns = conv2d.output_shape((1, height, width, channels))[1:3]
    out = np.zeros((rows, columns, conv2d.filters))
    per_group, depth = conv2d.filters // conv2d.groups, channels // conv2d.groups
    for filter_number in range(conv2d.filters):
        first = filter_number // per_group * depth
        for i, j in np.ndindex(*conv2d.kernel_size):
            top, left = i * conv2d.dilation_rate[0], j * conv2d.dilation_rate[1]
            seen = padded[top :: conv2d.strides[0], left :: conv2d.strides[1], first : first + depth]
            out[..., filter_number] += seen[:rows, :columns] @ kernel[i, j, :, filter_number]
    return out + bias


@settings(max_examples=40)
@given(geometries(), st.integers(0, 2**32 - 1))
def test_the_written_sum_of_every_pixel_is_the_convolution(geometry, seed):
    conv2d, height, width, channels = geometry
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    kernel = rng.normal(size=(*conv2d.kernel_size, channels // conv2d.groups, conv2d.filters)).astype(np.float32)
    bias = rng.normal(size=conv2d.filters).astype(np.float32)
    expected = reference(conv2d, x.astype(float), kernel, bias)
    for place in np.ndindex(expected.shape):
        written = written_sum(conv2d, x, kernel, bias, place)
        assert written.total == pytest.approx(expected[place], abs=1e-6)
        assert written.values.shape == written.weights.shape == (len(written.channels), *conv2d.kernel_size)
    assert written.bias == pytest.approx(float(bias[place[-1]]))


def test_a_window_has_gaps_and_lies_on_padding():
    conv2d = Conv2D(1, 3, padding="same", dilation_rate=2)
    written = written_sum(conv2d, np.ones((5, 5, 1)), np.ones((3, 3, 1, 1)), None, (0, 1, 0))
    assert (written.window.rows, written.window.columns) == ((-2, 0, 2), (-1, 1, 3))
    assert written.values.tolist() == [[[0, 0, 0], [0, 1, 1], [0, 1, 1]]]
    assert written.total == 4


@given(geometries())
def test_formulas_end_in_what_is_planned(geometry):
    conv2d, *shape = geometry
    plan = conv2d.plan((1, *shape))
    for direction in (0, 1):
        _, numbers = formulas.size_formula(conv2d, shape[direction], direction)
        right = re.search(r"= (\d+)", numbers)
        assert int(right[1]) == plan.output_shape[1 + direction]
        left = numbers[: right.start()].replace("\N{MINUS SIGN}", "-").replace("\N{MULTIPLICATION SIGN}", "*")
        computed = re.sub(r"⌈(.*) ÷ (.*)⌉", r"-(-(\1) // \2)", re.sub(r"⌊(.*) ÷ (.*)⌋", r"((\1) // \2)", left))
        assert eval(computed) == plan.output_shape[1 + direction]  # noqa: S307 (a formula of ours)
    for text, planned in (
        (formulas.parameters_formula(conv2d, plan), plan.parameters),
        (formulas.flops_formula(conv2d, plan), plan.flops),
    ):
        left, _, right = text.replace(",", "").replace("(bias)", "").replace("pixels", "").rpartition("=")
        assert int(right) == planned
        assert eval(left.replace("\N{MULTIPLICATION SIGN}", "*").replace("÷", "//")) == planned  # noqa: S307
