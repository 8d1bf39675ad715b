"""How much a call computes of what its plan counts."""

from __future__ import annotations

from typing import Any

import pytest

from convserve import Conv2D
from convserve.layers.plan import plan
from convserve_server.tiling.work import is_dense

SAME = Conv2D(8, 5, padding="same", data_format="channels_last", dtype="float32")


@pytest.mark.parametrize(
    ("changes", "sides", "expected"),
    [
        ({}, (5, 5), True),
        ({}, (4, 50), False),
        ({}, (50, 4), False),
        ({"data_format": "channels_first"}, (5, 5), True),
        ({"data_format": "channels_first"}, (50, 4), False),
        ({"dilation_rate": 4}, (17, 17), True),
        ({"dilation_rate": 4}, (16, 17), False),
        ({"padding": "valid"}, (5, 5), True),
    ],
)
def test_windows_that_are_larger_than_images_lie_on_padding(
    changes: dict[str, Any], sides: tuple[int, int], expected: bool
) -> None:
    config = SAME.replace(**changes)
    shape = (2, *sides, 3) if config.data_format == "channels_last" else (2, 3, *sides)
    assert is_dense([config], shape, plan([config], shape)) is expected


def test_each_layer_of_a_chain_has_the_output_before_it_as_its_image() -> None:
    chain, shape = [SAME.replace(strides=4), SAME], (1, 16, 20, 3)
    assert not is_dense(chain, shape, plan(chain, shape))
    assert is_dense(chain, (1, 20, 20, 3), plan(chain, (1, 20, 20, 3)))
