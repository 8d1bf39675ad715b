"""Workloads: a layer with its weights, and the inputs that it is called with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer, planned
from convserve.layers.plan import Plan, channel_axis, kernel_shape
from convserve.tensors.codec import Array, Shape, numpy_dtype

_MAX_INPUT_BYTES = 64_000_000
_MAX_INPUTS = 4


@dataclass(frozen=True)
class Workload:
    """One layer and what it is applied to."""

    name: str  # what the report calls it
    layer: Layer  # with weights
    input_shape: Shape  # four dimensions, the batch axis first
    input_dtype: str = "float32"
    output_dtype: str | None = None  # None for that of the computation

    def plan(self) -> Plan:
        """Returns what a call comes to; raises InvalidArgumentError if layer and input don't fit."""
        return planned([self.layer], self.input_shape, self.input_dtype, self.output_dtype)

    def inputs(self) -> list[Array]:
        """Returns the inputs that callers take turns with.

        They differ, so that an answer which belongs to another caller is noticed, unless they would be large together.
        """
        number = max(1, min(_MAX_INPUTS, _MAX_INPUT_BYTES // self.plan().input_bytes))
        return [_random(self.input_shape, self.input_dtype, seed) for seed in range(number)]


def with_weights(config: Conv2D, input_shape: Shape, seed: int = 0) -> Layer:
    """Returns a layer with random weights, whose outputs are about as large as its inputs.

    Speed does not depend on the weights, so the configuration's initializers, which only a server has, are not asked.
    """
    planned([Layer(config)], input_shape, "float32", None)
    shape = kernel_shape(config, input_shape[channel_axis(config)])
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(math.prod(shape[:3])))
    bias = rng.standard_normal(config.filters, dtype=np.float32) if config.use_bias else None
    return Layer(config, kernel, bias)


def standard() -> list[Workload]:
    """Returns four workloads, from the smallest call that makes sense to a batch for throughput."""
    same: Any = {"padding": "same", "activation": "relu", "data_format": "channels_last", "dtype": "float32"}
    return [
        Workload(name, with_weights(Conv2D(filters, size, strides=strides, **same), shape), shape)
        for name, filters, size, strides, shape in (
            ("small image", 16, 3, 1, (1, 32, 32, 3)),
            ("feature map", 64, 3, 1, (1, 56, 56, 64)),
            ("photo", 64, 7, 2, (1, 224, 224, 3)),
            ("batch", 64, 3, 1, (32, 56, 56, 64)),
        )
    ]


def _random(shape: Shape, dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if dtype in ("uint8", "int8"):
        low = 0 if dtype == "uint8" else -128
        return rng.integers(low, low + 256, shape, dtype=dtype)
    return rng.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(dtype), copy=False)
