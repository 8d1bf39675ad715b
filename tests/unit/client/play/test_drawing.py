"""The page's pictures stay small: of a page that is too large marimo shows nothing."""

import re

import numpy as np
import pytest

from convserve.layers.conv2d import Conv2D
from convserve.play.convolution.settings import _MOST, SIZES
from convserve.play.convolution.windows import padding_of, written_sum

pytest.importorskip("matplotlib")

from convserve.play.drawing import input_svg, map_svg, scale_for, zoom_svg
from convserve.play.serving import PAGE
from convserve.play.view import MAX_MAPS

MOST_BYTES = int(re.search(r"^# output_max_bytes = (\w+)", PAGE.read_text(), re.MULTILINE)[1])


def test_the_largest_pictures_that_a_page_can_have_are_shown():
    size = max(SIZES)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    conv2d = Conv2D(1, _MOST["kernel_size"], padding="same", dilation_rate=_MOST["dilation_rate"])
    padding = padding_of(conv2d, size, size)
    scale = scale_for(size, size, padding)
    kernel = np.random.default_rng(1).normal(size=(*conv2d.kernel_size, 3, 1)).astype(np.float32)
    written = written_sum(conv2d, noise, kernel, None, (size // 2, size // 2, 0))
    zooms = [zoom_svg(noise, written, channel) for channel in range(3)]
    one_input = input_svg(noise, padding, written.window, scale)
    one_map = map_svg(noise[..., 0].astype(np.float32), None, scale, None)
    beside = 2 * (4 * len(one_map) + len(one_input))
    characters = MAX_MAPS * len(one_map) + len(one_input) + beside + sum(map(len, zooms))
    assert 2 * characters < MOST_BYTES / 1.2
