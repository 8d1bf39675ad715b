"""Whatever `keras.layers.Conv2D` computes the service computes, and whatever it refuses the service refuses.

Calls are drawn at random, the same in every run. `HYPOTHESIS_PROFILE=thorough pytest tests/integration/
test_keras_properties.py` draws forty times as many, other ones in every run, in about half an hour.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import keras_truth
from tests.conftest import RunningServer
from tests.keras_truth import keras
from tests.raw_calls import checked

import convserve
from convserve import activations, constraints, initializers, regularizers
from convserve.keras_object import KerasObject
from convserve.v1 import conv2d_pb2, convolution_service_pb2, convolution_service_pb2_grpc, tensor_pb2

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

TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.6e-2}
"""By compute dtype: the largest difference, as a share of the largest value before the activation.

Service and Keras run the same kernels of TensorFlow's, but not always in the same combination: in a graph TensorFlow
fuses a convolution with its bias and activation, and Keras compiles grouped convolutions with XLA. So sums are taken in
another order, and the narrow types are rounded at other points. Measured over 4000 calls of the first test below, most
do not differ at all, and the largest differences are 7e-8, 1.1e-15, 3.5e-4 and 6.4e-3. Allowed are two roundings of the
narrow types, whose epsilons are 2**-10 and 2**-7, what the service promises for float32, and some hundred epsilons of
float64, since other processors have other kernels.
"""


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


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn
# ----------------------------------------------------------------------------------------------------------------------


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
        return keras_truth.keras_value(value)
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
        "kernel_regularizer": draw(REGULARIZERS),
        "bias_regularizer": draw(REGULARIZERS),
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


# ----------------------------------------------------------------------------------------------------------------------
# What is computed
# ----------------------------------------------------------------------------------------------------------------------


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for a narrow type becomes infinite
        return array.astype(dtype)


def largest(array: np.ndarray) -> float:
    """Returns the largest finite magnitude."""
    magnitudes = np.abs(array.astype(np.float64))
    return float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))


def worst_excess(output: np.ndarray, truth: keras_truth.Truth, output_dtype: str | None = None) -> float:
    """Returns by how many tolerances an output lies outside what Keras' result allows; up to 1 is agreement.

    What the activation is given may be off by the tolerance. What it then may return is what it returns a tolerance
    below, at and above Keras' value; so neither the jump of a threshold nor the steepness of an exponential counts as a
    difference, and nothing else is let through.
    """
    compute = truth.before.dtype.name
    tolerance = TOLERANCE[compute]
    expected_dtype = output_dtype or compute
    assert output.dtype.name == expected_dtype
    assert output.shape == truth.output.shape
    off = tolerance * largest(truth.before)
    with np.errstate(over="ignore", invalid="ignore"):
        near = [truth.activation(cast(truth.before.astype(np.float64) + by, compute)) for by in (-off, off)]
        bounds = np.stack([cast(each, expected_dtype).astype(np.float64) for each in (truth.output, *near)])
        low, high, found = np.fmin.reduce(bounds), np.fmax.reduce(bounds), output.astype(np.float64)
        excess = np.fmax(low - found, found - high)
    excess[np.isnan(bounds[0]) & np.isnan(found)] = 0
    excess[bounds[0] == found] = 0  # equal infinities
    assert not np.isnan(excess).any(), "NaN where Keras has a number, or the reverse"
    rounding = float(ml_dtypes.finfo(expected_dtype).eps)
    margin = max(tolerance, rounding) * max(largest(truth.before), largest(bounds[0]))
    return float(excess.max()) / margin if margin else float(excess.max() > 0)


def assert_losses_agree(found: convserve.Losses, truth: keras_truth.Truth) -> None:
    """Checks each loss by itself; it is there if and only if Keras has it.

    The weights are the same, so their losses differ by rounding alone. The activity's may differ by what the outputs
    may: where the regularizer's sum is small because most outputs are, by a tolerance of the largest.
    """
    compute, variable = truth.before.dtype.name, truth.kernel.dtype.name
    most = largest(truth.output)
    spread = TOLERANCE[compute] * max(most, most**2) * truth.output[0].size
    for what, dtype, off in (("kernel", variable, 0.0), ("bias", variable, 0.0), ("activity", compute, spread)):
        expected, received = getattr(truth.losses, what), getattr(found, what)
        if expected is None:
            assert received is None, what
        else:
            assert received == pytest.approx(expected, rel=2 * TOLERANCE[dtype], abs=off, nan_ok=True), what


@given(call=calls())
@examples(150)
def test_outputs_losses_and_amounts_are_keras(client: convserve.Client, call: Call) -> None:
    """All parameters at once: values, each loss, and what the plan says of them."""
    truth = keras_truth.run(call.arguments, call.x, *call.weights)
    layer = convserve.Layer(call.config, *call.weights)
    result = client.convolve(layer, call.x, output_dtype=call.output_dtype)
    assert worst_excess(result.output, truth, call.output_dtype) <= 1
    assert_losses_agree(result.losses[0], truth)
    plan = call.config.plan(call.shape, input_dtype=call.dtype, output_dtype=call.output_dtype)
    assert plan.output_shape == truth.output.shape
    assert plan.output_dtype == result.output.dtype.name
    assert plan.output_bytes == result.output.nbytes
    assert plan.input_bytes == call.x.nbytes
    assert plan.parameters == truth.parameters
    assert plan.weight_bytes == truth.kernel.nbytes + (0 if truth.bias is None else truth.bias.nbytes)
    assert plan.layers[0].kernel_shape == truth.kernel.shape
    places = truth.before.size // call.config.filters
    assert plan.flops == places * (2 * truth.kernel.size + (0 if truth.bias is None else truth.bias.size))


@given(call=calls())
@examples(40)
def test_sums_of_whole_numbers_are_exact(client: convserve.Client, call: Call) -> None:
    """Where rounding has no part, nothing differs at all."""
    exact = {"activation": None, "activity_regularizer": None, "dtype": "float32"}
    call = dataclasses.replace(call, values=call.values | exact, dtype="int8", whole=True, weighted=True)
    truth = keras_truth.run(call.arguments, call.x, *call.weights)
    found = client.convolve(convserve.Layer(call.config, *call.weights), call.x).output
    np.testing.assert_array_equal(found, truth.output)


@given(call=calls())
@examples(60)
def test_configurations_go_to_keras_and_come_back(call: Call) -> None:
    """Keras' layer of the same arguments, read; and the configuration, given to Keras."""
    values = call.values | {"name": "layer", "input_shape": None}
    if isinstance(values["padding"], tuple):
        values["padding"] = "valid"  # Keras' layer has no other
    if isinstance(values.get("activation"), activations.Activation) and values["activation"].parameters:
        values["activation"] = "relu"  # Keras keeps no parameters of a function
    for name, value in values.items():
        if value in ("l1", "L1"):
            values[name] = regularizers.L1(0.25)  # Keras keeps the default 0.01 as a float32
    config = dataclasses.replace(call, values=values).config
    layer = keras_truth.keras_layer({name: spelled(value, call.spelling) for name, value in values.items()})
    assert convserve.Conv2D.from_keras(layer) == config
    assert convserve.Conv2D.from_keras(layer.get_config()) == config
    assert convserve.Conv2D.from_keras(keras.layers.Conv2D.from_config(config.to_keras_config())) == config


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("name", sorted(activations.Activation.members))
def test_every_activation_is_keras(client: convserve.Client, name: str, dtype: str) -> None:
    """By its name, with Keras' defaults, with a batch, a height and a width that differ from each other."""
    function: Any = activations.Threshold(0.25, -1.5) if name == "threshold" else name
    for data_format, shape in (("channels_last", (2, 5, 6, 4)), ("channels_first", (2, 4, 5, 6))):
        values = {"filters": 6, "kernel_size": 3, "activation": function, "data_format": data_format, "dtype": dtype}
        call = Call(values, "convserve", shape)
        result = client.convolve(convserve.Layer(call.config, *call.weights), call.x)
        assert worst_excess(result.output, keras_truth.run(values, call.x, *call.weights)) <= 1


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("axis", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("kind", [activations.Softmax, activations.LogSoftmax, activations.Sparsemax, activations.GLU])
def test_every_axis_of_an_activation_is_keras(client: convserve.Client, kind: Any, axis: int, data_format: str) -> None:
    """In float16, in which not every operation exists."""
    values = {
        "filters": 4, "kernel_size": 1, "activation": kind(axis), "data_format": data_format, "dtype": "mixed_float16",
    }  # fmt: skip
    call = Call(values, "convserve", (3, 2, 6, 2))
    result = client.convolve(convserve.Layer(call.config, *call.weights), call.x)
    assert worst_excess(result.output, keras_truth.run(values, call.x, *call.weights)) <= 1


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_infinities_and_nan_are_computed_with(client: convserve.Client, dtype: str) -> None:
    values = {"filters": 2, "kernel_size": 2, "padding": "same", "dtype": dtype}
    call = Call(values, "convserve", (1, 8, 8, 1))
    x = call.x
    x[0, 1, 1], x[0, 6, 1], x[0, 3, 6] = np.nan, np.inf, -np.inf
    truth = keras_truth.run(values, x, *call.weights)
    assert np.isnan(truth.output).any()
    assert np.isinf(truth.output.astype("f4")).any()
    assert worst_excess(client.convolve(convserve.Layer(call.config, *call.weights), x).output, truth) <= 1


def test_channels_first_truth_is_what_keras_computes_when_compiled() -> None:
    """Keras runs channels_first on a CPU after all if XLA compiles it: the transpositions are the same layer.

    Without strides, because with strides and a bias XLA's result for CPUs is wrong (TensorFlow 2.21).
    """
    values = {
        "filters": 4, "kernel_size": (3, 2), "padding": "same", "data_format": "channels_first",
        "activation": "softmax",
    }  # fmt: skip
    call = Call(values, "convserve", (2, 3, 5, 7))
    kernel, bias = call.weights
    layer = keras_truth.keras_layer(values)
    layer.build(call.shape)
    layer.set_weights([kernel, bias])
    compiled = keras_truth.tf.function(layer, jit_compile=True, autograph=False)(call.x).numpy()
    np.testing.assert_allclose(keras_truth.run(values, call.x, kernel, bias).output, compiled, atol=1e-6)


@st.composite
def chains(draw: Any) -> list[dict[str, Any]]:
    """Draws two or three layers, each of which takes what the one before it gives."""
    return [
        {
            "filters": 2 * draw(st.integers(1, 3)),
            "kernel_size": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            "padding": "same",
            "data_format": draw(st.sampled_from(("channels_last", "channels_first"))),
            "groups": draw(st.sampled_from((1, 1, 2))),
            "activation": draw(st.sampled_from((None, "relu", "tanh", "softmax", "elu"))),
            "kernel_initializer": initializers.HeNormal(seed=draw(SEEDS)),
            "kernel_regularizer": draw(st.none() | st.just("l2")),
            "activity_regularizer": draw(st.none() | st.just("l1")),
            "dtype": draw(st.sampled_from(("float32", "float64", "mixed_float16", "bfloat16"))),
        }
        for _ in range(draw(st.integers(2, 3)))
    ]


@given(chain=chains())
@examples(15)
def test_a_chain_is_its_layers_one_after_another(client: convserve.Client, chain: list[dict[str, Any]]) -> None:
    """With policies and data formats of their own, and the losses of each."""
    x = Call(chain[0], "convserve", (2, 4, 6, 8)).x
    result = client.convolve([convserve.Conv2D(**layer) for layer in chain], x)
    coarsest = 0.0
    for layer, losses in zip(chain, result.losses, strict=True):
        truth = keras_truth.run(layer, x)
        x, coarsest = truth.output, max(coarsest, 4 * TOLERANCE[truth.output.dtype.name])
        for what in ("kernel", "bias", "activity"):
            expected = getattr(truth.losses, what)
            assert getattr(losses, what) == (None if expected is None else pytest.approx(expected, rel=2 * coarsest))
    assert result.output.dtype == x.dtype
    assert result.output.shape == x.shape
    expected = x.astype("f8")
    np.testing.assert_allclose(result.output.astype("f8"), expected, atol=coarsest * max(1.0, largest(expected)))


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn by initializers
# ----------------------------------------------------------------------------------------------------------------------


def drawn_kernel(client: convserve.Client, initializer: Any, dtype: str) -> np.ndarray:
    """Returns the kernel that the server draws, read off by a convolution with each of its places alone."""
    arguments = {"filters": 5, "kernel_size": (2, 3), "use_bias": False, "kernel_initializer": initializer}
    places = np.eye(24, dtype=np.float32).reshape(24, 2, 3, 4)
    return client.conv2d(places, **arguments, dtype=dtype).reshape(2, 3, 4, 5)


def drawn_bias(client: convserve.Client, initializer: Any, dtype: str) -> np.ndarray:
    arguments = {"filters": 5, "kernel_size": 1, "kernel_initializer": "zeros", "bias_initializer": initializer}
    return client.conv2d(np.zeros((1, 1, 1, 1), np.float32), **arguments, dtype=dtype).reshape(5)


def weights_of_keras(initializer: Any, dtype: str, what: str) -> np.ndarray:
    arguments = {"filters": 5, "kernel_size": (2, 3), f"{what}_initializer": initializer, "dtype": dtype}
    return getattr(keras_truth.run(arguments, np.zeros((1, 2, 3, 4), np.float32)), what)


SEEDED = {
    kind.keras_name: kind(**({"seed": 7} if "seed" in kind.__dataclass_fields__ else {}))
    for kind in initializers.MEMBERS
    if not kind.refusal
}
"""Every initializer that suits a Conv2D, with a seed where it draws at random."""


@pytest.mark.parametrize(
    ("name", "dtype"),
    # Keras has no orthogonal bfloat16; that it is refused is tested below.
    [(name, dtype) for name in SEEDED for dtype in FLOAT_DTYPES if (name, dtype) != ("orthogonal", "bfloat16")],
)
def test_every_initializer_draws_the_weights_that_keras_draws(client: convserve.Client, name: str, dtype: str) -> None:
    """Bit for bit."""
    found = drawn_kernel(client, SEEDED[name], dtype)
    assert found.dtype.name == dtype
    np.testing.assert_array_equal(found, weights_of_keras(SEEDED[name], dtype, "kernel"))
    if name != "orthogonal":
        found = drawn_bias(client, SEEDED[name], dtype)
        np.testing.assert_array_equal(found, weights_of_keras(SEEDED[name], dtype, "bias"))


@given(initializer=seeded(4, orthogonal=True))
@examples(30)
def test_initializers_with_any_parameters_draw_keras_kernel(client: convserve.Client, initializer: Any) -> None:
    np.testing.assert_array_equal(
        drawn_kernel(client, initializer, "float32"), weights_of_keras(initializer, "float32", "kernel")
    )


@given(initializer=seeded(1, orthogonal=False))
@examples(30)
def test_initializers_with_any_parameters_draw_keras_bias(client: convserve.Client, initializer: Any) -> None:
    np.testing.assert_array_equal(
        drawn_bias(client, initializer, "float32"), weights_of_keras(initializer, "float32", "bias")
    )


def test_a_seed_that_the_server_chose_rebuilds_the_weights(client: convserve.Client) -> None:
    """The configuration that comes back gives the same output again, and gives it in Keras."""
    config = convserve.Conv2D(4, 3, bias_initializer="random_normal")
    x = Call({}, "convserve", (1, 5, 5, 2)).x
    first, second = client.convolve(config, x), client.convolve(config, x)
    assert not np.array_equal(first.output, second.output)
    told = first.layers[0]
    assert told is not None
    np.testing.assert_array_equal(client.convolve(told, x).output, first.output)
    assert worst_excess(first.output, keras_truth.run(vars(told), x)) <= 1


# ----------------------------------------------------------------------------------------------------------------------
# What is planned
# ----------------------------------------------------------------------------------------------------------------------


@st.composite
def large_calls(draw: Any) -> Call:
    """Draws layers and inputs of any size; nothing is computed with them."""
    groups, channels = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    spatial = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
    windows = st.tuples(st.integers(1, 40), st.integers(1, 40))
    steps = st.tuples(st.integers(1, 40), st.integers(1, 40))
    strides, dilation = draw(st.tuples(steps, st.just((1, 1))) | st.tuples(st.just((1, 1)), steps))
    first = draw(st.booleans())
    batch, sizes = draw(st.integers(1, 1000)), draw(spatial)
    values = {
        "filters": groups * draw(st.integers(1, 64)),
        "kernel_size": draw(windows),
        "strides": strides,
        "padding": draw(st.sampled_from(("valid", "same"))),
        "data_format": "channels_first" if first else "channels_last",
        "dilation_rate": dilation,
        "groups": groups,
        "use_bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(tuple(POLICIES))),
    }
    shape = (batch, channels * groups, *sizes) if first else (batch, *sizes, channels * groups)
    return Call(values, "convserve", shape, draw(st.sampled_from(INPUT_DTYPES)))


@given(call=large_calls())
@examples(150)
def test_plans_are_keras_arithmetic(client: convserve.Client, call: Call) -> None:
    """Keras' shape, or Keras' refusal; and the server plans as the client does."""
    try:
        shape = keras_truth.keras_layer(call.arguments).compute_output_shape(call.shape)
    except ValueError:
        with pytest.raises(convserve.InvalidTensorError) as caught:
            call.config.plan(call.shape)
        assert [each.field for each in caught.value.violations] == ["input"]
        return
    pure = call.config.plan(call.shape, input_dtype=call.dtype)
    assert pure.output_shape == shape
    assert pure.admitted is None
    asked = client.plan(call.config, call.shape, input_dtype=call.dtype)
    assert asked.admitted is (asked.refusal is None)
    assert dataclasses.replace(asked, admitted=None, refusal=None) == pure


# ----------------------------------------------------------------------------------------------------------------------
# Names and defaults
# ----------------------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, Any] = {
    "activations": activations.Activation,
    "initializers": initializers.Initializer,
    "regularizers": regularizers.Regularizer,
    "constraints": constraints.Constraint,
}
BASE_CLASSES = ("Initializer", "Regularizer", "Constraint")


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_under_which_keras_finds_something(family: str) -> None:
    module, members = getattr(keras, family), FAMILIES[family].members
    public = {name for name in dir(module) if not name.startswith("_")} - {"get", "serialize", "deserialize"}
    found = {name for name in public if _finds(module, name)} - set(BASE_CLASSES)
    assert found <= set(members) | {"constant", "Constant"}
    assert {name for name in members if not _finds(module, name)} <= {"constant", "Constant"}


def _finds(module: Any, name: str) -> bool:
    try:
        return module.get(name) is not None
    except (ValueError, KeyError):  # KeyError: Keras knows `constant`, but asks for its value
        return False
    except ImportError:  # Keras knows `stft`, but asks for scipy
        return True


def test_defaults_of_parameters_are_keras() -> None:
    for family, base in FAMILIES.items():
        for kind in set(base.members.values()):
            name = kind.keras_name if family == "activations" else kind.__name__
            parameters = list(inspect.signature(getattr(getattr(keras, family), name)).parameters.values())
            if family == "activations":
                del parameters[0]
            theirs = {each.name: None if each.default is each.empty else each.default for each in parameters}
            ours = {field.name: field.default for field in dataclasses.fields(kind)}
            ours = {key: value[0] if value == (0,) else value for key, value in ours.items()}  # axis=0 of constraints
            assert ours == theirs, name


def test_parameters_order_and_defaults_of_conv2d_are_keras() -> None:
    theirs = inspect.signature(keras.layers.Conv2D.__init__).parameters
    ours = inspect.signature(convserve.Conv2D.__init__).parameters
    assert [name for name in ours if name in theirs] == [name for name in theirs if name != "kwargs"]
    assert {name: ours[name].default for name in theirs if name != "kwargs"} == {
        name: each.default for name, each in theirs.items() if name != "kwargs"
    }
    assert [name for name in ours if name not in theirs] == ["name", "dtype", "trainable", "input_shape"]


# ----------------------------------------------------------------------------------------------------------------------
# What is refused: how it is sent past the client's checks
# ----------------------------------------------------------------------------------------------------------------------

VALID: dict[str, Any] = {
    "filters": 4,
    "kernel_size": (3, 3),
    "strides": (1, 1),
    "padding": "valid",
    "data_format": "channels_last",
    "dilation_rate": (1, 1),
    "groups": 1,
    "dtype": "float32",
}
"""Arguments that nothing is wrong with."""
SHAPE = (2, 6, 6, 4)


def message_of(arguments: Mapping[str, Any]) -> conv2d_pb2.Conv2D:
    """Returns arguments as another language's caller would write them: field by field, without any check."""
    message = conv2d_pb2.Conv2D()
    for name, value in arguments.items():
        field = getattr(message, name)
        if value is None:
            pass
        elif name in ("kernel_size", "strides", "dilation_rate"):
            field.height, field.width = value
        elif name == "padding" and isinstance(value, str):
            field.mode = conv2d_pb2.PaddingMode.Value(f"PADDING_MODE_{value.upper()}")
        elif name == "padding":
            (field.explicit.top, field.explicit.bottom), (field.explicit.left, field.explicit.right) = value
        elif name == "data_format":
            message.data_format = conv2d_pb2.DataFormat.Value(f"DATA_FORMAT_{value.upper()}")
        elif name == "dtype":
            message.dtype = conv2d_pb2.DtypePolicy.Value(f"DTYPE_POLICY_{value.upper()}")
        elif name == "input_shape":
            field.extend(-1 if size is None else size for size in value)
        elif isinstance(value, dict):
            write_keras_object(field, value["class_name"], value["config"])
        else:
            setattr(message, name, value)
    return message


def plain(name: str) -> str:
    """Returns what is common to Keras' spellings of a name: "glorot_uniform" and "GlorotUniform"."""
    return name.replace("_", "").lower()


def write_keras_object(message: Any, class_name: str, config: Mapping[str, Any]) -> None:
    """Sets the one kind of a message whose name is this class', and its parameters."""
    (choice,) = message.DESCRIPTOR.oneofs
    (kind,) = (field.name for field in choice.fields if plain(field.name) == plain(class_name))
    member = getattr(message, kind)
    member.SetInParent()
    for name, value in config.items():
        field = member.DESCRIPTOR.fields_by_name[name]
        if isinstance(value, tuple):
            (getattr(member, name) if field.message_type is None else getattr(member, name).axis).extend(value)
        else:
            setattr(member, name, value)


def refused(call: Callable[[], Any], reason: str) -> dict[str, str]:
    """Returns the descriptions by field with which a call on a stub is refused; fails if it is not."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    _, violations = checked(caught.value, grpc.StatusCode.INVALID_ARGUMENT, reason)
    return violations


@pytest.fixture
def stub(server: RunningServer) -> Iterator[convolution_service_pb2_grpc.ConvolutionServiceStub]:
    """The generated stub, which checks nothing."""
    with grpc.insecure_channel(server.target) as channel:
        yield convolution_service_pb2_grpc.ConvolutionServiceStub(channel)


def request_of(conv2d: conv2d_pb2.Conv2D, shape: tuple[int, ...] = SHAPE) -> convolution_service_pb2.ConvolveRequest:
    """Returns a request with this configuration, without weights, and an input of ones."""
    request = convolution_service_pb2.ConvolveRequest()
    request.layers.add().inline.conv2d.CopyFrom(conv2d)
    request.input.CopyFrom(tensor_of(np.ones(shape, "<f4")))
    return request


def tensor_of(array: np.ndarray) -> tensor_pb2.Tensor:
    number = tensor_pb2.Dtype.Value(f"DTYPE_{array.dtype.name.upper()}")
    return tensor_pb2.Tensor(dtype=number, shape=array.shape, data=array.tobytes())


def refused_by_client(arguments: Mapping[str, Any], shape: tuple[int, ...] = SHAPE) -> convserve.InvalidArgumentError:
    """Returns what the client raises for a layer and an input, before it has connected to anybody."""
    with convserve.Client("localhost:1", retry=convserve.RetryRule(attempts=1)) as unconnected:
        with pytest.raises(convserve.InvalidArgumentError) as caught:
            unconnected.convolve(convserve.Conv2D(**arguments), np.ones(shape, np.float32))
        return caught.value


def assert_both_refuse(
    stub: Any, arguments: Mapping[str, Any], fields: list[str], shape: tuple[int, ...] = SHAPE
) -> None:
    """Checks that client and server refuse for these fields, and with the same words."""
    error = refused_by_client(arguments, shape)
    assert sorted(each.field for each in error.violations) == sorted(fields)
    texts = {each.field: each.description for each in error.violations}
    reason = {
        convserve.InvalidConfigurationError: "INVALID_CONFIGURATION",
        convserve.InvalidTensorError: "INVALID_TENSOR",
    }[type(error)]
    plan = convolution_service_pb2.PlanRequest(input_shape=shape)
    plan.layers.add().inline.conv2d.CopyFrom(message_of(arguments))
    for answer in (
        refused(lambda: stub.Convolve(request_of(message_of(arguments), shape)), reason),
        refused(lambda: stub.Plan(plan), reason),
    ):
        if len(fields) == 1:
            assert answer == texts
        else:  # a status has room for some violations, and for so much of each
            assert len(answer) >= min(4, len(fields))
            assert all(texts[field].startswith(text) for field, text in answer.items())


# ----------------------------------------------------------------------------------------------------------------------
# What is refused: faults that the wire can express too
# ----------------------------------------------------------------------------------------------------------------------


def named(class_name: str, **config: Any) -> dict[str, Any]:
    """Returns Keras' dictionary of an initializer, a regularizer, a constraint or an activation."""
    return {"class_name": class_name, "config": config}


def identity(value: object) -> str:
    """Returns a parameter's part of a test's name, the same in every process."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text[:90]


NAN, INFINITY = float("nan"), float("inf")
TOO_LARGE_FOR_FLOAT32 = 3.5e38

FAULTS: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, name) for name in ("filters", "groups") for value in (0, -1, -(2**31))),
    *(
        ({name: value}, name)
        for name in ("kernel_size", "strides", "dilation_rate")
        for value in ((0, 3), (3, 0), (0, 0), (-1, 1), (1, -(2**31)))
    ),
    ({"groups": 3}, "filters"),
    ({"strides": (1, 2), "dilation_rate": (2, 1)}, "strides"),
    ({"padding": ((-1, 0), (0, 0))}, "padding"),
    ({"padding": ((0, 0), (0, -2))}, "padding"),
    ({"name": "a/b"}, "name"),
    ({"activation": named("threshold", default_value=1.0)}, "activation.threshold"),
    ({"activation": named("threshold", threshold=1.0)}, "activation.default_value"),
    ({"activation": named("relu", max_value=1e300)}, "activation.max_value"),
    ({"activation": named("relu", threshold=-TOO_LARGE_FOR_FLOAT32)}, "activation.threshold"),
    ({"activation": named("softmax", axis=4)}, "activation.axis"),
    ({"activation": named("log_softmax", axis=-5)}, "activation.axis"),
    ({"activation": named("sparsemax", axis=7)}, "activation.axis"),
    ({"activation": named("glu", axis=-9)}, "activation.axis"),
    ({"kernel_initializer": named("identity")}, "kernel_initializer"),
    ({"kernel_initializer": named("stft")}, "kernel_initializer"),
    ({"bias_initializer": named("identity", gain=2.0)}, "bias_initializer"),
    ({"bias_initializer": named("stft", side="imag")}, "bias_initializer"),
    ({"bias_initializer": named("orthogonal", seed=1)}, "bias_initializer"),
    ({"dtype": "bfloat16", "kernel_initializer": named("orthogonal")}, "kernel_initializer"),
    *(
        ({f"{what}_initializer": named("variance_scaling", **{key: value})}, f"{what}_initializer.{key}")
        for what in ("kernel", "bias")
        for key, value in (("scale", 0.0), ("scale", -1.0), ("mode", "fan"), ("mode", ""), ("distribution", "beta"))
    ),
    ({"kernel_initializer": named("he_normal", input_axes=(4,), output_axes=(3,))}, "kernel_initializer.input_axes"),
    ({"kernel_initializer": named("he_normal", input_axes=(0,), output_axes=(-5,))}, "kernel_initializer.output_axes"),
    ({"bias_initializer": named("he_normal", input_axes=(1,), output_axes=(0,))}, "bias_initializer.input_axes"),
    ({"bias_initializer": named("he_normal", input_axes=(0,), output_axes=(-2,))}, "bias_initializer.output_axes"),
    *(
        ({f"{what}_initializer": named("constant", value=value)}, f"{what}_initializer.value")
        for what in ("kernel", "bias")
        for value in (TOO_LARGE_FOR_FLOAT32, -1e300)
    ),
    *(
        ({f"{what}_regularizer": named(kind, **{key: value})}, f"{what}_regularizer.{key}")
        for what in ("kernel", "bias", "activity")
        for kind, key, value in (
            ("l1", "l1", -1.0), ("l1", "l1", NAN), ("l1", "l1", TOO_LARGE_FOR_FLOAT32), ("l2", "l2", -0.5),
            ("l2", "l2", INFINITY), ("l2", "l2", 1e300), ("l1l2", "l1", -1.0), ("l1l2", "l2", NAN),
        )
    ),
    *(
        ({f"{what}_regularizer": named("OrthogonalRegularizer")}, f"{what}_regularizer")
        for what in ("kernel", "bias", "activity")
    ),
    ({"kernel_regularizer": named("OrthogonalRegularizer", factor=-1.0)}, "kernel_regularizer.factor"),
    ({"kernel_regularizer": named("OrthogonalRegularizer", mode="diagonals")}, "kernel_regularizer.mode"),
]  # fmt: skip
"""What is changed in VALID, and the field to be named."""


def keras_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments for Keras, in which an activation with parameters is a function."""
    found = dict(arguments)
    if isinstance(found.get("activation"), dict):
        function, config = found["activation"]["class_name"], found["activation"]["config"]
        found["activation"] = functools.partial(getattr(keras.activations, function), **config)
    return found


@pytest.mark.parametrize(("changes", "field"), FAULTS, ids=identity)
def test_what_keras_refuses_client_and_server_refuse(stub: Any, changes: dict[str, Any], field: str) -> None:
    """One fault: Keras raises, the client names the field, and the server names it in the same words."""
    arguments = VALID | changes
    assert keras_truth.refusal(keras_arguments(arguments), SHAPE) is not None
    assert_both_refuse(stub, arguments, [field])


# Faults that are found before an input is looked at, and that concern one parameter alone.
INDEPENDENT = [
    (changes, field)
    for changes, field in FAULTS
    if len(changes) == 1 and "groups" not in changes and field not in ("kernel_initializer", "bias_initializer")
    and not ("bias_initializer" in changes and field.endswith("axes"))
]  # fmt: skip


SEVERAL = st.lists(st.sampled_from(INDEPENDENT), min_size=2, max_size=8, unique_by=lambda fault: next(iter(fault[0])))


@given(faults=SEVERAL)
@examples(150)
def test_every_one_of_several_faults_is_named(stub: Any, faults: list[tuple[dict[str, Any], str]]) -> None:
    arguments: dict[str, Any] = dict(VALID)
    for changes, _ in faults:
        arguments |= changes
    assert_both_refuse(stub, arguments, [field for _, field in faults])


INPUT_FAULTS: list[tuple[dict[str, Any], tuple[int, ...], str]] = [
    ({}, (6, 6, 4), "input"),
    ({}, (36,), "input"),
    ({}, (2, 1, 6, 6, 4), "input"),
    ({"kernel_size": (7, 3)}, SHAPE, "input"),
    ({"kernel_size": (3, 7)}, SHAPE, "input"),
    ({"dilation_rate": (1, 3)}, SHAPE, "input"),
    ({"data_format": "channels_first"}, (2, 6, 6, 2), "input"),
    ({"kernel_size": (9, 1), "padding": ((1, 1), (5, 5))}, SHAPE, "input"),
    ({"groups": 4}, (2, 6, 6, 6), "groups"),
    ({"groups": 2, "data_format": "channels_first"}, (2, 3, 6, 6), "groups"),
    ({"filters": 3, "activation": named("glu")}, SHAPE, "activation"),
    ({"kernel_size": (2, 3), "activation": named("glu", axis=1)}, SHAPE, "activation"),
    ({"kernel_size": (3, 2), "data_format": "channels_first", "activation": named("glu")}, SHAPE, "activation"),
]


@pytest.mark.parametrize(("changes", "shape", "field"), INPUT_FAULTS, ids=identity)
def test_inputs_that_keras_refuses_client_and_server_refuse(
    stub: Any, changes: dict[str, Any], shape: tuple[int, ...], field: str
) -> None:
    """Keras holds its first input against the layer; the service holds every one."""
    arguments = VALID | changes
    assert keras_truth.refusal(keras_arguments(arguments), shape) is not None
    assert_both_refuse(stub, arguments, [field], shape)


@pytest.mark.parametrize(
    ("use_bias", "kernel", "bias", "field"),
    [
        (True, (3, 3, 4, 5), (4,), "kernel"),
        (True, (3, 2, 4, 4), (4,), "kernel"),
        (True, (4, 4, 3, 3), (4,), "kernel"),
        (True, (3, 3, 16), (4,), "kernel"),
        (True, (1, 3, 3, 4, 4), (4,), "kernel"),
        (True, (3, 3, 2, 4), (4,), "kernel"),
        (False, (3, 3, 5, 4), None, "kernel"),
        (True, (3, 3, 4, 4), (5,), "bias"),
        (True, (3, 3, 4, 4), (1, 4), "bias"),
        (True, (3, 3, 4, 4), (1,), "bias"),
        (True, (3, 3, 4, 4), None, "bias"),
        (False, (3, 3, 4, 4), (4,), "bias"),
    ],
)
def test_weights_that_keras_refuses_client_and_server_refuse(
    stub: Any, use_bias: bool, kernel: tuple[int, ...], bias: tuple[int, ...] | None, field: str
) -> None:
    arguments = VALID | {"use_bias": use_bias}
    given = [None if shape is None else np.ones(shape, np.float32) for shape in (kernel, bias)]
    x = np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match=r"shape|weight"):
        keras_truth.run(arguments, x, *given)
    with pytest.raises(convserve.InvalidWeightsError) as caught:
        convserve.Layer(convserve.Conv2D(**arguments), *given).check_input_channels(SHAPE[3])
    request = request_of(message_of(arguments))
    weights = request.layers[0].inline.weights
    for name, array in zip(("kernel", "bias"), given, strict=True):
        if array is not None:
            getattr(weights, name).CopyFrom(tensor_of(array))
    answer = refused(lambda: stub.Convolve(request), "INVALID_WEIGHTS")
    assert answer == {each.field: each.description for each in caught.value.violations}
    assert list(answer) == [field]


@given(call=calls())
@examples(40)
def test_a_message_written_by_hand_means_what_the_client_sends(client: convserve.Client, stub: Any, call: Call) -> None:
    """The contract's names and defaults: a caller in another language gets what the Python client gets."""
    config = call.config
    arguments: dict[str, Any] = {}
    for name, default in vars(convserve.Conv2D(1, 1, data_format="channels_last", dtype="float32")).items():
        value = getattr(config, name)
        if isinstance(value, KerasObject):
            value = named(value.keras_name, **{key: each for key, each in value.parameters.items() if each is not None})
        if getattr(config, name) != default or name in ("filters", "kernel_size", "data_format"):
            arguments[name] = value  # any other is left out: a field that is not set has Keras' default
    request = convolution_service_pb2.ConvolveRequest()
    inline = request.layers.add().inline
    inline.conv2d.CopyFrom(message_of(arguments))
    for name, array in zip(("kernel", "bias"), call.weights, strict=True):
        if array is not None:
            getattr(inline.weights, name).CopyFrom(tensor_of(array))
    request.input.CopyFrom(tensor_of(call.x))
    output = stub.Convolve(request).output
    expected = client.convolve(convserve.Layer(config, *call.weights), call.x).output
    assert tuple(output.shape) == expected.shape
    assert output.data == expected.tobytes()


# ----------------------------------------------------------------------------------------------------------------------
# What is refused: Python's values, most of which the wire cannot express
# ----------------------------------------------------------------------------------------------------------------------

ROOMY = (1, 8, 8, 8)
SOMETHING = object()
INTEGERS = [1, 2, 4, True, np.int64(4), np.int8(2), 0, -1, None, "4", 4.0, 2.5, [4], (4,), {}, b"4", NAN, SOMETHING, ""]
SIZES = [
    1, 2, True, (2, 2), [2, 3], (1, 2), (np.int64(2), 2), np.array([2, 2]), range(2, 4), {2: 1, 3: 1}, 0, -1, None, "3",
    "33", 3.0, 2.5, [2], (2,), (2, 2, 2), (2, 0), (0, 2), (-1, 2), ("2", "2"), (None, 2), {}, [], "", NAN, (NAN, 2),
    SOMETHING, [[2, 2]], False,
]  # fmt: skip
SPELLINGS: dict[str, list[Any]] = {
    "filters": INTEGERS,
    "groups": INTEGERS,
    "kernel_size": [*SIZES, (2.0, 2), (2.5, 2)],
    "strides": SIZES,
    "dilation_rate": SIZES,
    "padding": ["valid", "same", "VALID", "Same", "causal", "full", "", None, 0, 1, [], {}, " valid", b"same"],
    "data_format": [
        None, "channels_last", "CHANNELS_LAST", "Channels_First", "NHWC", "", 0, True, [], b"channels_last",
    ],
    "activation": [
        None, *NAMED_ACTIVATIONS, "glu", "threshold", "ReLU", "LeakyReLU", "Softmax", "nope", "", "get", "serialize",
        0, 1, True, [], {}, keras.activations.relu, keras.activations.glu, keras.layers.ReLU(max_value=1.0),
        keras.layers.LeakyReLU(), keras.layers.ELU(), keras.layers.Softmax(axis=2), keras.layers.Activation("tanh"),
        keras.activations.serialize(keras.activations.gelu), named("function"), SOMETHING,
    ],
    "use_bias": [True, False, None, 0, 1, 2, np.True_, np.False_],
    "trainable": [True, False, None, 0, 1, "yes", "", [], np.True_, 1.0],
    "name": [None, "a", "a b", "a.b", "ü", "", "a/b", "/", 0, 1, True, [], {}, b"a", 1.5],
    "dtype": [
        None, *POLICIES, "Float32", "float", "half", "double", "", "int32", "int8", "uint8", "bool", "complex64",
        "string", "float8", "float8_from_float32", "int8_from_float32", np.float32, np.dtype("float16"), np.int32,
        keras.DTypePolicy("mixed_bfloat16"), named("DTypePolicy", name="mixed_float16"), 0, [], {}, SOMETHING,
    ],
    "input_shape": [None, (6, 6, 4), [6, 6, 4], (None, None, 4), (None, None, None), (9, 9, 9)],
    "kernel_initializer": [
        None, *sorted(set(initializers.Initializer.members) - {"constant", "Constant"}), "nope", "", "GLOROT_UNIFORM",
        "glorotuniform", "random_initializer", "initializer", 0, 1, 1.5, True, [], {}, SOMETHING, len,
        keras.initializers.Zeros, keras.initializers.GlorotUniform, keras.initializers.Constant(2),
        keras.initializers.HeNormal(seed=3), keras.initializers.Orthogonal(), keras.initializers.Identity(),
        named("Zeros", value=1), named("Nope"), {"config": {}}, {"class_name": "GlorotUniform"},
        *(named("GlorotUniform", seed=seed) for seed in (0, -1, 2**31, 2**40, 2**63 - 1, -(2**63), 2**70, 1.0, "1")),
        *(named("RandomNormal", seed=1, mean=mean) for mean in (-2, True, "a")),
        *(named("RandomUniform", seed=1, minval=low, maxval=high) for low, high in ((1, 0), (1, 1), (0, "a"))),
        *(named("VarianceScaling", seed=1, scale=scale) for scale in (2, True, 0, -1, "a", [1])),
        *(named("VarianceScaling", seed=1, mode=mode) for mode in ("fan_avg", "nope", "", 1)),
        *(named("VarianceScaling", seed=1, distribution=name) for name in ("normal", "Uniform", "nope", "", 1)),
        *(
            named("LecunNormal", seed=1, input_axes=axes, output_axes=others)
            for axes, others in (((0, 1), (2,)), ([2], [3]), ((0, 0), (0,)), ((4,), (0,)), ((0,), (-5,)), ("a", (1,)))
        ),
        *(named("Orthogonal", seed=1, gain=gain) for gain in (0, -1, "a")),
    ],
    "bias_initializer": [
        None, "zeros", "ones", "he_normal", "orthogonal", "identity", "stft", "nope", "", 0, {}, SOMETHING,
        named("Constant", value=True), named("Constant", value=TOO_LARGE_FOR_FLOAT32), named("Constant", value=10**400),
        keras.initializers.Orthogonal(),
        *(
            named("HeNormal", seed=1, input_axes=axes, output_axes=others)
            for axes, others in (((0,), (-1,)), ((0,), None), ((1,), None), ((1,), (0,)), ((0,), (-2,)))
        ),
    ],
    **{
        f"{what}_regularizer": [
            None, "l1", "L1", "l2", "L2", "l1l2", "L1L2", "l1_l2", "orthogonal_regularizer", "OrthogonalRegularizer",
            "nope", "", 0, 1, True, [], {}, SOMETHING, keras.regularizers.L1, keras.regularizers.L2(0.5),
            keras.regularizers.OrthogonalRegularizer(), named("L1"), named("L1", l2=1),
            *(named("L1", l1=factor) for factor in (0, 0.5, True, None, np.float64(0.1), -1, NAN, "a", [1], 1 + 0j)),
            *(named("L1L2", l2=factor) for factor in (0, None, -1, INFINITY, TOO_LARGE_FOR_FLOAT32)),
        ]
        for what in ("kernel", "bias", "activity")
    },
    **{
        f"{what}_constraint": [
            None, "max_norm", "MaxNorm", "maxnorm", "MinMaxNorm", "non_neg", "nonneg", "UnitNorm", "nope", "", 0, True,
            [], {}, SOMETHING, keras.constraints.MaxNorm, keras.constraints.UnitNorm(axis=[0, 1, 2]),
            named("MaxNorm", max_value=-1), named("MaxNorm", limit=1), named("MinMaxNorm", rate=2, axis=(0, 1)),
            named("UnitNorm", axis=-1), named("UnitNorm", axis=3),
        ]
        for what in ("kernel", "bias")
    },
}  # fmt: skip
"""What a caller may write, most of it wrong: by parameter, values of which Keras is the judge."""


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_client_takes_and_refuses_what_keras_takes_and_refuses(name: str) -> None:
    disagreements = []
    for value in SPELLINGS[name]:
        arguments = VALID | {name: value}
        error: convserve.InvalidArgumentError | None = None
        try:
            config = convserve.Conv2D(**arguments)
            convserve.Layer(config).check_input_channels(config.plan(ROOMY).layers[0].kernel_shape[2] * config.groups)
        except convserve.InvalidArgumentError as caught:
            error = caught
            if {each.field.partition(".")[0] for each in caught.violations} != {name}:
                disagreements.append(f"{name}={value!r} is refused for another field: {caught}")
        by_keras = keras_truth.refusal(arguments, ROOMY)
        if (error is None) != (by_keras is None):
            disagreements.append(f"{name}={value!r}: Keras says {by_keras}, the client says {error}")
    assert disagreements == []


# ----------------------------------------------------------------------------------------------------------------------
# Where the service is not Keras, on purpose
# ----------------------------------------------------------------------------------------------------------------------

STRICTER: list[tuple[dict[str, Any], tuple[int, ...], str]] = [
    # A tensor has elements.
    ({}, (0, 6, 6, 4), "input"),
    ({"padding": "same"}, (2, 0, 6, 4), "input"),
    ({"padding": "same"}, (2, 6, 0, 4), "input"),
    # Axis 0 would mix the samples of a batch, which may be other callers'.
    ({"activation": named("softmax", axis=0)}, SHAPE, "activation.axis"),
    ({"activation": named("glu", axis=-4)}, SHAPE, "activation.axis"),
    # Numbers are finite and fit float32.
    ({"activation": named("leaky_relu", negative_slope=NAN)}, SHAPE, "activation.negative_slope"),
    ({"activation": named("elu", alpha=1e300)}, SHAPE, "activation.alpha"),
    ({"kernel_initializer": named("constant", value=INFINITY)}, SHAPE, "kernel_initializer.value"),
    ({"kernel_initializer": named("random_normal", seed=1, mean=NAN)}, SHAPE, "kernel_initializer.mean"),
    ({"kernel_initializer": named("random_normal", seed=1, stddev=-1.0)}, SHAPE, "kernel_initializer.stddev"),
    ({"kernel_constraint": named("max_norm", max_value=NAN)}, SHAPE, "kernel_constraint.max_value"),
    # Axes are looked at even where Keras does not come to use them.
    ({"kernel_initializer": named("he_normal", input_axes=(7,))}, SHAPE, "kernel_initializer.input_axes"),
    ({"bias_constraint": named("unit_norm", axis=(4,))}, SHAPE, "bias_constraint.axis"),
    # Labels are short, and input_shape is the shape of an image.
    ({"name": "x" * 1001}, SHAPE, "name"),
    ({"input_shape": (6, 6)}, SHAPE, "input_shape"),
    ({"input_shape": (6, 6, 0)}, SHAPE, "input_shape"),
]


@pytest.mark.parametrize(("changes", "shape", "field"), STRICTER, ids=identity)
def test_what_keras_takes_and_the_service_refuses_on_purpose(
    stub: Any, changes: dict[str, Any], shape: tuple[int, ...], field: str
) -> None:
    arguments = VALID | changes
    assert keras_truth.refusal(keras_arguments(arguments), shape) is None
    assert_both_refuse(stub, arguments, [field], shape)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # The truth of a string is more likely a mistake than meant.
        *(("use_bias", value) for value in ("yes", "False", "", [], 1.0, SOMETHING)),
        # Base classes do nothing; a function of the caller's own cannot cross the wire.
        ("kernel_regularizer", "regularizer"),
        ("bias_regularizer", "Regularizer"),
        ("bias_constraint", "constraint"),
        ("kernel_constraint", "Constraint"),
        ("activation", lambda x: x),
        ("kernel_initializer", keras.ops.ones),
        ("kernel_regularizer", keras.ops.sum),
        ("kernel_constraint", lambda x: x),
        ("activation", keras.layers.PReLU()),
        # Weights as an array are given as weights.
        ("kernel_initializer", named("Constant", value=[2.0])),
        # A size is a whole number.
        ("strides", (2.0, 2)),
        ("dilation_rate", (2.0, 2)),
        ("groups", np.float32(2)),
        ("input_shape", (6, 6, 4.0)),
        ("input_shape", (1, 6, 6, 4)),
    ],
    ids=identity,
)
def test_python_values_that_keras_takes_and_the_client_refuses_on_purpose(name: str, value: Any) -> None:
    arguments = VALID | {name: value}
    assert keras_truth.refusal(arguments, SHAPE) is None
    assert {each.field.partition(".")[0] for each in refused_by_client(arguments).violations} == {name}


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        # numpy's integers are integers, and its numbers numbers.
        *((name, np.int64(2), (2, 2)) for name in ("kernel_size", "strides", "dilation_rate")),
        ("kernel_initializer", named("GlorotUniform", seed=np.int64(3)), initializers.GlorotUniform(seed=3)),
        ("kernel_regularizer", named("L2", l2=np.float32(0.5)), regularizers.L2(0.5)),
        ("activity_regularizer", named("L1", l1=np.int64(2)), regularizers.L1(2)),
        # None asks for a parameter's default everywhere, as in Keras' regularizers.
        ("kernel_initializer", named("RandomNormal", seed=1, mean=None), initializers.RandomNormal(seed=1)),
        ("kernel_initializer", named("VarianceScaling", scale=None, mode=None), initializers.VarianceScaling()),
        ("bias_initializer", "constant", initializers.Constant(0.0)),
        # Words are read in any case, as in Keras' `padding`; one axis may be written as a number.
        ("kernel_initializer", named("VarianceScaling", mode="FAN_OUT"), initializers.VarianceScaling(mode="fan_out")),
        ("kernel_initializer", named("HeNormal", input_axes=2, output_axes=3), initializers.HeNormal(None, [2], [3])),
        # A dictionary needs no module.
        ("activation", named("relu", max_value=6), activations.ReLU(max_value=6)),
    ],
    ids=identity,
)
def test_python_values_that_keras_refuses_and_the_client_takes(name: str, value: Any, meaning: Any) -> None:
    """They can only mean one thing."""
    assert keras_truth.refusal(VALID | {name: value}, SHAPE) is not None
    assert getattr(convserve.Conv2D(**VALID | {name: value}), name) == meaning


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "int8_from_float32", "float8_from_float32"])
def test_policies_without_floating_point_are_refused(dtype: str) -> None:
    assert [each.field for each in refused_by_client(VALID | {"dtype": dtype}).violations] == ["dtype"]
