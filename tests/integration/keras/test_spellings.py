"""Python's values for parameters, most of which the wire cannot express: Keras is the judge, with few exceptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convserve
from convserve import activations, initializers, regularizers
from tests.support.keras import truth
from tests.support.keras.calls import NAMED_ACTIVATIONS, POLICIES
from tests.support.keras.refusals import (
    INFINITY,
    NAN,
    SHAPE,
    TOO_LARGE_FOR_FLOAT32,
    VALID,
    identity,
    named,
    refused_by_client,
)
from tests.support.keras.truth import keras

ROOMY = (1, 8, 8, 8)
SOMETHING = object()
INTEGERS = [1, 2, 4, np.int64(4), np.int8(2), 0, -1, None, "4", 4.0, 2.5, [4], (4,), {}, b"4", NAN, SOMETHING, ""]
SIZES = [
    1, 2, (2, 2), [2, 3], (1, 2), (np.int64(2), 2), np.array([2, 2]), range(2, 4), {2: 1, 3: 1}, 0, -1, None, "3",
    "33", 3.0, 2.5, [2], (2,), (2, 2, 2), (2, 0), (0, 2), (-1, 2), ("2", "2"), (None, 2), {}, [], "", NAN, (NAN, 2),
    SOMETHING, [[2, 2]],
]  # fmt: skip
SPELLINGS: dict[str, list[Any]] = {
    "filters": INTEGERS,
    "groups": INTEGERS,
    "kernel_size": [*SIZES, (2.0, 2), (2.5, 2)],
    "strides": SIZES,
    "dilation_rate": SIZES,
    "padding": ["valid", "same", "VALID", "Same", "causal", "full", "", None, [], {}, " valid", b"same"],
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
        *(named("RandomNormal", seed=1, mean=mean) for mean in (-2, "a")),
        *(named("RandomUniform", seed=1, minval=low, maxval=high) for low, high in ((1, 0), (1, 1), (0, "a"))),
        *(named("VarianceScaling", seed=1, scale=scale) for scale in (2, 0, -1, "a", [1])),
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
        named("Constant", value=TOO_LARGE_FOR_FLOAT32), named("Constant", value=10**400),
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
            *(named("L1", l1=factor) for factor in (0, 0.5, None, np.float64(0.1), -1, NAN, "a", [1], 1 + 0j)),
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
        by_keras = truth.refusal(arguments, ROOMY)
        if (error is None) != (by_keras is None):
            disagreements.append(f"{name}={value!r}: Keras says {by_keras}, the client says {error}")
    assert disagreements == []


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
        # A truth value is no number of anything.
        *((name, True) for name in ("filters", "groups", "kernel_size", "strides", "dilation_rate")),
        ("strides", (2, True)),
        ("input_shape", (True, 6, 4)),
        ("kernel_constraint", named("MaxNorm", axis=True)),
        ("kernel_constraint", named("MaxNorm", max_value=True)),
        ("kernel_initializer", named("RandomNormal", seed=1, mean=True)),
        ("bias_initializer", named("Constant", value=True)),
        ("activity_regularizer", named("L1", l1=True)),
        ("activation", keras.layers.LeakyReLU(negative_slope=True)),
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
    assert truth.refusal(arguments, SHAPE) is None
    assert {each.field.partition(".")[0] for each in refused_by_client(arguments).violations} == {name}


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        # numpy's integers are integers, and its numbers numbers.
        *((name, np.int64(2), (2, 2)) for name in ("kernel_size", "strides", "dilation_rate")),
        ("kernel_initializer", named("GlorotUniform", seed=np.int64(3)), initializers.GlorotUniform(seed=3)),
        ("kernel_regularizer", named("L2", l2=np.float32(0.5)), regularizers.L2(0.5)),
        ("activity_regularizer", named("L1", l1=np.int64(2)), regularizers.L1(2)),
        # PyTorch's amounts.
        ("padding", 0, ((0, 0), (0, 0))),
        ("padding", np.int64(1), ((1, 1), (1, 1))),
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
    assert truth.refusal(VALID | {name: value}, SHAPE) is not None
    assert getattr(convserve.Conv2D(**VALID | {name: value}), name) == meaning


@pytest.mark.parametrize("name", sorted({*vars(keras.ops)} & {*activations.Activation.members} - {"threshold"}))
def test_a_function_of_keras_ops_is_the_activation_with_its_own_defaults(name: str) -> None:
    function = getattr(keras.ops, name)
    found = activations.Activation.get(function, "activation")
    assert found is not None
    x = np.linspace(-4, 4, 24, dtype=np.float32).reshape(2, 12)
    meant = keras.activations.get(found.keras_name)(keras.ops.convert_to_tensor(x), **found.parameters)
    np.testing.assert_allclose(meant, function(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "int8_from_float32", "float8_from_float32"])
def test_policies_without_floating_point_are_refused(dtype: str) -> None:
    assert [each.field for each in refused_by_client(VALID | {"dtype": dtype}).violations] == ["dtype"]
