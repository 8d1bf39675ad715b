"""Layers that the server draws: what is kept, for how long, and what is not."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from convserve import Conv2D, Layer
from convserve_server.scheduling.initialized_layers import InitializedLayerCache

CONFIG = Conv2D(16, 8, data_format="channels_last", dtype="float32", use_bias=False, kernel_initializer="zeros")
BYTES = 8 * 8 * 16 * 4 + 4096


class Drawing:
    """Draws zeros and counts how often; so many layers are kept."""

    def __init__(self, kept: int) -> None:
        self.count = 0
        self.layers = InitializedLayerCache(self.draw, kept * BYTES)

    def draw(self, config: Conv2D, input_channels: int) -> Layer:
        self.count += 1
        return Layer(config.with_seed(1), np.zeros((*config.kernel_size, input_channels, config.filters), "f4"))


def named(name: str) -> Conv2D:
    return CONFIG.replace(name=name)


def test_what_always_comes_out_the_same_is_drawn_once() -> None:
    drawing = Drawing(2)
    assert drawing.layers.get(CONFIG, 1) is None
    first = drawing.layers.initialize(CONFIG, 1)
    assert drawing.layers.initialize(CONFIG, 1) is first
    assert drawing.layers.get(CONFIG, 1) is first
    assert drawing.layers.get(CONFIG, 2) is None
    assert drawing.count == 1


def test_what_had_no_seed_is_not_kept() -> None:
    drawing = Drawing(2)
    unseeded = CONFIG.replace(kernel_initializer="glorot_uniform")
    assert drawing.layers.initialize(unseeded, 1) is not drawing.layers.initialize(unseeded, 1)
    assert drawing.layers.get(unseeded, 1) is None
    assert drawing.layers.get(unseeded.with_seed(1), 1) is None  # it was asked for by nobody


def test_what_was_used_longest_ago_goes_first_and_is_forgotten() -> None:
    drawing = Drawing(2)
    alive = weakref.ref(drawing.layers.initialize(named("a"), 1))
    drawing.layers.initialize(named("b"), 1)
    drawing.layers.get(named("a"), 1)
    drawing.layers.initialize(named("c"), 1)
    assert drawing.layers.get(named("b"), 1) is None
    assert drawing.layers.get(named("a"), 1) is not None
    drawing.layers.initialize(named("d"), 1)
    drawing.layers.initialize(named("e"), 1)
    gc.collect()
    assert alive() is None


def test_what_is_larger_than_all_there_is_goes_nowhere_and_evicts_nothing() -> None:
    drawing = Drawing(1)
    kept = drawing.layers.initialize(CONFIG, 1)
    drawing.layers.initialize(CONFIG, 100)
    assert drawing.layers.get(CONFIG, 100) is None
    assert drawing.layers.get(CONFIG, 1) is kept


def test_two_that_draw_at_once_share_one_layer() -> None:
    layers: list[Layer] = []

    def draw(config: Conv2D, input_channels: int) -> Layer:
        layer = Layer(config, np.zeros((8, 8, 1, 16), "f4"))
        if not layers:
            layers.append(layer)
            layers.append(drawn.initialize(config, input_channels))  # another one, faster
        return layer

    drawn = InitializedLayerCache(draw)
    assert drawn.initialize(CONFIG, 1) is layers[1] is not layers[0]
