"""The cache of initialized layers: what it keeps, for how long, and what it does not keep."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from convserve import Conv2D, Layer
from convserve_server.scheduling.initialized_layers import InitializedLayerCache

CONFIG = Conv2D(16, 8, data_format="channels_last", dtype="float32", use_bias=False, kernel_initializer="zeros")
BYTES = 8 * 8 * 16 * 4 + 4096


class CountedCache:
    """A cache of so many layers, and how often weights were initialized: with zeros."""

    def __init__(self, kept: int) -> None:
        self.count = 0
        self.layers = InitializedLayerCache(self.zeros, kept * BYTES)

    def zeros(self, config: Conv2D, input_channels: int) -> Layer:
        self.count += 1
        return Layer(config.with_seed(1), np.zeros((*config.kernel_size, input_channels, config.filters), "f4"))


def named(name: str) -> Conv2D:
    return CONFIG.replace(name=name)


def test_a_seeded_layer_is_initialized_once() -> None:
    cache = CountedCache(2)
    assert cache.layers.get(CONFIG, 1) is None
    first = cache.layers.initialize(CONFIG, 1)
    assert cache.layers.initialize(CONFIG, 1) is first
    assert cache.layers.get(CONFIG, 1) is first
    assert cache.layers.get(CONFIG, 2) is None
    assert cache.count == 1


def test_a_layer_without_a_seed_is_not_cached() -> None:
    cache = CountedCache(2)
    unseeded = CONFIG.replace(kernel_initializer="glorot_uniform")
    assert cache.layers.initialize(unseeded, 1) is not cache.layers.initialize(unseeded, 1)
    assert cache.layers.get(unseeded, 1) is None
    assert cache.layers.get(unseeded.with_seed(1), 1) is None  # it was asked for by nobody


def test_the_layer_used_longest_ago_is_evicted_first() -> None:
    cache = CountedCache(2)
    alive = weakref.ref(cache.layers.initialize(named("a"), 1))
    cache.layers.initialize(named("b"), 1)
    cache.layers.get(named("a"), 1)
    cache.layers.initialize(named("c"), 1)
    assert cache.layers.get(named("b"), 1) is None
    assert cache.layers.get(named("a"), 1) is not None
    cache.layers.initialize(named("d"), 1)
    cache.layers.initialize(named("e"), 1)
    gc.collect()
    assert alive() is None


def test_a_layer_larger_than_the_cache_is_not_cached_and_evicts_nothing() -> None:
    cache = CountedCache(1)
    kept = cache.layers.initialize(CONFIG, 1)
    cache.layers.initialize(CONFIG, 100)
    assert cache.layers.get(CONFIG, 100) is None
    assert cache.layers.get(CONFIG, 1) is kept


def test_two_threads_that_initialize_one_layer_share_it() -> None:
    layers: list[Layer] = []

    def initialize(config: Conv2D, input_channels: int) -> Layer:
        layer = Layer(config, np.zeros((8, 8, 1, 16), "f4"))
        if not layers:
            layers.append(layer)
            layers.append(cache.initialize(config, input_channels))  # another one, faster
        return layer

    cache = InitializedLayerCache(initialize)
    assert cache.initialize(CONFIG, 1) is layers[1] is not layers[0]
