"""Random calls that Keras takes: a layer's arguments in all their spellings, an input and weights.

The draws are the same in every run. `HYPOTHESIS_PROFILE=thorough pytest tests/integration/test_keras_*.py` draws forty
times as many, other ones in every run, in about half an hour.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import convserve
from convserve import activations, constraints, initializers, regularizers
from convserve._keras_object import KerasObject
from tests.support.keras import truth
from tests.support.keras.truth import keras

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

POLICIES = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float64": ("float64", "float64"),
    "mixed_float16": ("float16", "float32"),
    "mixed_bfloat16": ("bfloat16", "float32"),
}
"""Each policy's compute dtype and variable dtype."""
INPUT_DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8", "int8")
FLOAT_DTYPES = INPUT_DTYPES[:4]


def examples(number: int) -> Callable[[Any], Any]:
    """Returns the settings of a test that draws so many calls."""
    return settings(
        max_examples=number * 40 if THOROUGH else number,
        derandomize=not THOROUGH,
        database=None,
        deadline=None,  # the machine may be busy, and a new geometry is traced
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@dataclasses.dataclass(frozen=True)
class Call:
    """A layer and an input that Keras takes.

    Attributes:
        values: The layer's arguments.
        spelling: How those that are values of convserve's are written: as they are, as Keras' own objects (as
            functions, for activations without parameters), or as the dictionary that Keras makes of these.
        shape: Of the input.
        dtype: Of the input.
        whole: Whether input and given weights are small whole numbers, with which sums are exact.
        weighted: Whether weights are given; otherwise they are drawn by the initializers, which then have seeds.
        seed: Of input and given weights.
        output_dtype: As in `Client.convolve`.
    """

    values: dict[str, Any]
    spelling: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    whole: bool = False
    weighted: bool = True
    seed: int = 0
    output_dtype: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {name: spelled(value, self.spelling) for name, value in self.values.items()}

    @property
    def config(self) -> convserve.Conv2D:
        return convserve.Conv2D(**self.arguments)

    @property
    def x(self) -> np.ndarray:
        random = np.random.default_rng(self.seed)
        if self.dtype in ("uint8", "int8"):
            limits = np.iinfo(self.dtype)
            return random.integers(limits.min, limits.max, self.shape, self.dtype, endpoint=True)
        values = random.integers(-3, 4, self.shape) if self.whole else random.normal(size=self.shape)
        return values.astype(self.dtype)

    @property
    def weights(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        if not self.weighted:
            return None, None
        config, random = self.config, np.random.default_rng(self.seed + 1)
        channels = self.shape[3 if config.data_format == "channels_last" else 1]
        shape = (*config.kernel_size, channels // config.groups, config.filters)
        if self.whole:
            kernel, bias = random.integers(-2, 3, shape), random.integers(-2, 3, config.filters)
        else:
            kernel, bias = random.normal(size=shape) / np.sqrt(np.prod(shape[:3])), random.normal(size=config.filters)
        dtype = config.variable_dtype
        return kernel.astype(dtype), bias.astype(dtype) if config.use_bias else None


NUMBERS = st.floats(-3, 3, width=16)
POSITIVE = st.floats(2**-6, 3, width=16)
SEEDS = st.integers(-(2**63), 2**63 - 1)
AXES = st.sampled_from((-3, -2, -1, 1, 2, 3))


def spelled(value: Any, spelling: str) -> Any:
    """Returns a value of convserve's as another that means the same, and any other value as it is."""
    if spelling == "convserve" or not isinstance(value, KerasObject):
        return value
    if isinstance(value, activations.Activation):
        return value if value.parameters else getattr(keras.activations, value.keras_name)
    if spelling == "keras":
        return truth.keras_value(value)
    return {"class_name": type(value).__name__, "config": value.parameters}


# Without `threshold`, which Keras finds by its name and then cannot call; and without `glu`, which needs even axes.
NAMED_ACTIVATIONS = sorted(set(activations.Activation.members) - {"threshold", "glu"})
ACTIVATIONS = st.one_of(
    st.none(),
    st.sampled_from(NAMED_ACTIVATIONS),
    st.sampled_from(NAMED_ACTIVATIONS).map(lambda name: activations.Activation.members[name]()),
    st.builds(activations.ReLU, POSITIVE, st.none() | POSITIVE, NUMBERS),
    st.builds(activations.ReLU, NUMBERS),
    st.builds(activations.LeakyReLU, NUMBERS),
    st.builds(activations.CELU, POSITIVE),
    st.builds(activations.ELU, NUMBERS),
    st.builds(activations.Squareplus, POSITIVE),
    st.builds(activations.SoftShrink, POSITIVE),
    st.builds(activations.HardShrink, POSITIVE),
    st.builds(activations.Threshold, NUMBERS, NUMBERS),
    st.builds(activations.GELU, st.booleans()),
    st.builds(activations.Softmax, AXES),
    st.builds(activations.LogSoftmax, AXES),
    st.builds(activations.Sparsemax, AXES),
    st.builds(activations.GLU, AXES),
    st.just("glu"),
)
REGULARIZERS = st.one_of(
    st.none(),
    st.sampled_from(("l1", "l2", "l1l2", "L1", "L2", "L1L2")),
    st.one_of(
        st.builds(regularizers.L1, POSITIVE),
        st.builds(regularizers.L2, POSITIVE),
        st.builds(regularizers.L1L2, st.just(0.0) | POSITIVE, st.just(0.0) | POSITIVE),
    ),
)
# Of which outputs are computed, and no loss.
WEIGHT_REGULARIZERS = REGULARIZERS | st.builds(
    regularizers.OrthogonalRegularizer, POSITIVE, st.sampled_from(("rows", "columns"))
)
NORM_AXES = st.lists(st.integers(-4, 3), min_size=1, max_size=3, unique=True)
CONSTRAINTS = st.one_of(
    st.none(),
    st.sampled_from(("max_norm", "MinMaxNorm", "non_neg", "UnitNorm")),
    st.one_of(
        st.builds(constraints.MaxNorm, POSITIVE, NORM_AXES),
        st.builds(constraints.MinMaxNorm, POSITIVE, POSITIVE, POSITIVE, NORM_AXES),
        st.builds(constraints.UnitNorm, NORM_AXES),
    ),
)


def seeded(rank: int, *, orthogonal: bool) -> st.SearchStrategy[Any]:
    """Draws initializers for weights of so many axes whose draws can be repeated."""
    axes = st.none() | st.lists(st.integers(-rank, rank - 1), min_size=1, max_size=rank)
    fans = (
        initializers.GlorotNormal, initializers.GlorotUniform, initializers.HeNormal, initializers.HeUniform,
        initializers.LecunNormal, initializers.LecunUniform,
    )  # fmt: skip
    found = [
        st.builds(initializers.Zeros),
        st.builds(initializers.Ones),
        st.builds(initializers.Constant, NUMBERS),
        st.builds(initializers.RandomNormal, NUMBERS, POSITIVE, SEEDS),
        st.builds(initializers.RandomUniform, NUMBERS, NUMBERS, SEEDS),
        st.builds(initializers.TruncatedNormal, NUMBERS, POSITIVE, SEEDS),
        st.builds(
            initializers.VarianceScaling,
            POSITIVE,
            st.sampled_from(("fan_in", "fan_out", "fan_avg")),
            st.sampled_from(("truncated_normal", "untruncated_normal", "uniform")),
            SEEDS,
            axes,
            axes,
        ),
        st.sampled_from(fans).flatmap(lambda kind: st.builds(kind, SEEDS, axes, axes)),
    ]
    if orthogonal:
        found.append(st.builds(initializers.Orthogonal, NUMBERS, SEEDS))
    return st.sampled_from(("zeros", "ones", "Zeros", "Ones")) | st.one_of(found)


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def written(pair: tuple[int, int]) -> st.SearchStrategy[Any]:
    """Draws the ways to write (height, width)."""
    ways: list[Any] = [pair, list(pair)]
    return st.sampled_from([*ways, pair[0]] if pair[0] == pair[1] else ways)


@st.composite
def calls(draw: Any) -> Call:
    """Draws calls that Keras takes, over all parameters."""
    arguments: dict[str, Any] = {}
    groups = draw(st.sampled_from((1, 1, 1, 1, 2, 3)))
    channels = groups * draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    strides, dilation = draw(st.sampled_from(((1, 1), (1, 1), (3, 1), (1, 2)))), (1, 1)
    activation = draw(ACTIVATIONS)
    glu = activation == "glu" or isinstance(activation, activations.GLU)
    if draw(st.booleans()):
        strides = draw(PAIRS)
    elif draw(st.booleans()):
        strides, dilation = (1, 1), draw(PAIRS)
    padding = draw(st.sampled_from(("valid", "same", "VALID", "Same", None)))
    if padding is None:
        amounts = st.tuples(st.integers(0, 3), st.integers(0, 3))
        padding = draw(st.tuples(amounts, amounts))
    if glu:
        padding, strides = "same", (1, 1)
    window = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    least = window if padding in ("valid", "VALID") else [1, 1]
    if isinstance(padding, tuple):
        least = [max(1, size - sum(amounts)) for size, amounts in zip(window, padding, strict=True)]
    sizes = [low + draw(st.integers(0, 7)) for low in least]
    if glu:
        sizes = [size + size % 2 for size in sizes]
    data_format = draw(st.sampled_from((None, "channels_last", "channels_first", "Channels_First")))
    batch = draw(st.integers(1, 5))
    first = (data_format or "").lower() == "channels_first"
    shape = (batch, channels, *sizes) if first else (batch, *sizes, channels)
    policy = draw(st.sampled_from(tuple(POLICIES)))
    arguments |= {
        "filters": groups * draw(st.integers(1, 4)) * (2 if glu else 1),
        "kernel_size": draw(written(kernel)),
        "strides": draw(written(strides)),
        "padding": padding,
        "data_format": data_format,
        "dilation_rate": draw(written(dilation)),
        "groups": groups,
        "activation": activation,
        "use_bias": draw(st.sampled_from((True, True, False, None, 0, 1))),
        "kernel_initializer": draw(seeded(4, orthogonal=POLICIES[policy][1] != "bfloat16")),
        "bias_initializer": draw(seeded(1, orthogonal=False)),
        "kernel_regularizer": draw(WEIGHT_REGULARIZERS),
        "bias_regularizer": draw(WEIGHT_REGULARIZERS),
        "activity_regularizer": draw(REGULARIZERS),
        "kernel_constraint": draw(CONSTRAINTS),
        "bias_constraint": draw(CONSTRAINTS),
        "name": draw(st.none() | st.text("abc _.-äß漢", min_size=1, max_size=8)),
        "dtype": policy,
        "trainable": draw(st.booleans()),
        "input_shape": draw(st.none() | st.just(shape[1:]) | st.just((None, None, None))),
    }
    for name in draw(st.sets(st.sampled_from(sorted(set(arguments) - {"filters", "kernel_size"})), max_size=6)):
        if name not in ("padding", "strides", "groups", "data_format", "kernel_initializer", "bias_initializer"):
            del arguments[name]  # Keras' default
    return Call(
        arguments,
        draw(st.sampled_from(("convserve", "keras", "dictionary"))),
        shape,
        draw(st.sampled_from(INPUT_DTYPES)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 2**32)),
        draw(st.none() | st.sampled_from(FLOAT_DTYPES)),
    )
