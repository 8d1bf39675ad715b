"""Tiles: which rows of the input give some rows of a chain's output, with which padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convserve import Conv2D, Layer
from convserve.layers.plan import plan
from convserve_server.tiling.tiles import Tile, chunks, height_axis, needs_all_rows, tile
from tests.support.engines.numpy_engine import NumpyEngine
from tests.support.layers.chains import assert_same, chains

LAST: dict[str, Any] = {"data_format": "channels_last", "dtype": "float32"}


def shapes(chain: list[Conv2D], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [shape, *(step.output_shape for step in plan(chain, shape).layers)]


def tiled(config: Conv2D, height: int, rows: tuple[int, int]) -> tuple[tuple[int, int], Any]:
    """Returns the rows read and the padding of a layer alone."""
    part = tile([config], shapes([config], (1, height, 9, 1)), rows)
    assert part.output_rows == rows
    return part.input_rows, part.chain[0].padding


SIDES = (1, 1)
BOTH = {"kernel_size": 2, "strides": 2, "dilation_rate": 3}


@pytest.mark.parametrize(
    ("given", "rows", "expected"),
    [
        # 10 rows of input, worked out by hand: what is read, and what padding is left.
        ({"kernel_size": 3}, (0, 4), ((0, 6), "valid")),
        ({"kernel_size": 3}, (4, 8), ((4, 10), "valid")),
        ({"kernel_size": 3, "padding": "same"}, (0, 4), ((0, 5), ((1, 0), SIDES))),
        ({"kernel_size": 3, "padding": "same"}, (4, 6), ((3, 7), ((0, 0), SIDES))),
        ({"kernel_size": 3, "padding": "same"}, (6, 10), ((5, 10), ((0, 1), SIDES))),
        ({"kernel_size": 3, "padding": "same"}, (0, 10), ((0, 10), "same")),
        ({"kernel_size": (3, 1), "padding": "same"}, (4, 6), ((3, 7), "valid")),
        ({"kernel_size": 3, "padding": "same", "dilation_rate": 2}, (1, 3), ((0, 5), ((1, 0), (2, 2)))),
        # Which Keras' words do not have, so that padding stays explicit where none is left.
        ({**BOTH, "padding": ((3, 2), (0, 1))}, (0, 2), ((0, 3), ((3, 0), (0, 1)))),
        ({**BOTH, "padding": ((3, 2), (0, 0))}, (2, 4), ((1, 7), ((0, 0), (0, 0)))),
        # same with strides: one row of padding in all, which TensorFlow puts last.
        ({"kernel_size": 3, "padding": "same", "strides": (2, 1)}, (0, 2), ((0, 5), ((0, 0), SIDES))),
        ({"kernel_size": 3, "padding": "same", "strides": (2, 1)}, (4, 5), ((8, 10), ((0, 1), SIDES))),
        ({"kernel_size": 2, "strides": 3, "padding": ((2, 1), (0, 0))}, (0, 1), ((0, 0), None)),
        ({"kernel_size": 3, "strides": 3, "padding": ((2, 1), (0, 3))}, (0, 1), ((0, 1), ((2, 0), (0, 3)))),
        ({"kernel_size": 3, "strides": 3, "padding": ((2, 1), (0, 3))}, (1, 3), ((1, 7), ((0, 0), (0, 3)))),
    ],
)
def test_a_tile_of_one_layer(given: dict[str, Any], rows: tuple[int, int], expected: Any) -> None:
    config = Conv2D(1, **given, **LAST)
    if expected[1] is None:  # padding alone: as many rows more as it takes to read something
        part = tile([config], shapes([config], (1, 10, 9, 1)), rows)
        assert part.output_rows == (0, 2)
        assert part.input_rows == (0, 3)
        assert part.chain[0].padding == ((2, 0), (0, 0))
    else:
        assert tiled(config, 10, rows) == expected


def test_padding_of_an_inner_layer_is_not_read_from_the_layer_before() -> None:
    chain = [Conv2D(1, 3, padding="same", **LAST), Conv2D(1, 5, padding="same", **LAST)]
    part = tile(chain, shapes(chain, (1, 20, 9, 1)), (0, 4))
    # The second layer reads rows 0 to 6 of the first, and pads two; the first reads rows 0 to 7, and pads one.
    assert part == Tile(
        (chain[0].replace(padding=((1, 0), (1, 1))), chain[1].replace(padding=((2, 0), (2, 2)))), (0, 7), (0, 4)
    )


def test_layers_whose_padding_does_not_change_stay_as_they_are() -> None:
    chain = [Conv2D(1, 3, **LAST), Conv2D(1, 3, padding=((0, 0), (1, 1)), **LAST)]
    part = tile(chain, shapes(chain, (1, 20, 9, 1)), (3, 5))
    assert part.chain == tuple(chain)


@settings(max_examples=150)
@given(chains(), st.data())
def test_a_tile_gives_the_rows_of_the_whole(made: tuple[list[Layer], Any], data: st.DataObject) -> None:
    layers, x = made
    chain = [layer.config for layer in layers]
    assume(list(chunks(chain)) == [(0, len(chain))] and not needs_all_rows(chain[-1]))
    engine, axis = NumpyEngine(), height_axis(chain[0])
    whole = engine.convolve(layers, [x], "float64", 0).output
    first = data.draw(st.integers(0, whole.shape[axis] - 1), "first")
    end = data.draw(st.integers(first + 1, whole.shape[axis]), "end")
    part = tile(chain, shapes(chain, x.shape), (first, end))
    assert part.output_rows[0] <= first < end <= part.output_rows[1]
    assert [config.replace(padding=0) for config in part.chain] == [config.replace(padding=0) for config in chain]
    output = engine.convolve(
        [Layer(config, layer.kernel, layer.bias) for config, layer in zip(part.chain, layers, strict=True)],
        [np.take(x, range(*part.input_rows), axis)],
        "float64",
        0,
    ).output
    assert_same(output, np.take(whole, range(*part.output_rows), axis), layers)


def test_chunks_end_where_rows_cannot_be_followed() -> None:
    plain = Conv2D(2, 1, **LAST)
    first = plain.replace(data_format="channels_first")
    lossy = plain.replace(activity_regularizer="l2")
    mixing = plain.replace(activation={"class_name": "softmax", "config": {"axis": 1}})
    for chain, expected in (
        ([plain], [(0, 1)]),
        ([plain] * 3, [(0, 3)]),
        ([plain, first, first, plain], [(0, 1), (1, 3), (3, 4)]),
        ([plain, lossy, plain, lossy], [(0, 2), (2, 4)]),
        ([plain, plain, mixing, plain, plain], [(0, 2), (2, 3), (3, 5)]),
        ([mixing, mixing], [(0, 1), (1, 2)]),
    ):
        assert list(chunks(chain)) == expected


@pytest.mark.parametrize(
    ("data_format", "mixing"), [("channels_last", {1, -3}), ("channels_first", {2, -2})], ids=["last", "first"]
)
def test_activations_along_the_height_need_all_rows(data_format: str, mixing: set[int]) -> None:
    for name in ("softmax", "log_softmax", "sparsemax", "glu"):
        for axis in (-3, -2, -1, 1, 2, 3):
            activation = {"class_name": name, "config": {"axis": axis}}
            config = Conv2D(2, 1, activation=activation, data_format=data_format, dtype="float32")
            assert needs_all_rows(config) == (axis in mixing), (name, axis)
    assert not needs_all_rows(Conv2D(2, 1, activation="relu", data_format=data_format, dtype="float32"))
