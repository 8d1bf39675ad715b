"""What Keras refuses client and server refuse, in the same words, as far as the wire can express it.

Beside it stands what the service refuses and Keras takes, on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convserve
from convserve.layers.layer import planned
from tests.support.keras import truth
from tests.support.keras.calls import examples
from tests.support.keras.refusals import (
    INFINITY,
    NAN,
    SHAPE,
    TOO_LARGE_FOR_FLOAT32,
    VALID,
    assert_both_refuse,
    identity,
    keras_arguments,
    message_of,
    named,
    refused,
    request_of,
    tensor_of,
)
from tests.support.raw.calls import raw_caller
from tests.support.servers.server_process import RunningServer

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
    ({"activity_regularizer": named("OrthogonalRegularizer")}, "activity_regularizer"),
    ({"kernel_regularizer": named("OrthogonalRegularizer", factor=-1.0)}, "kernel_regularizer.factor"),
    ({"kernel_regularizer": named("OrthogonalRegularizer", mode="diagonals")}, "kernel_regularizer.mode"),
]  # fmt: skip
"""What is changed in VALID, and the field to be named."""


@pytest.fixture
def stub(server: RunningServer) -> Iterator[Any]:
    """The generated stub, which checks nothing."""
    with raw_caller(server.target) as caller:
        yield caller.stub


@pytest.mark.parametrize(("changes", "field"), FAULTS, ids=identity)
def test_what_keras_refuses_client_and_server_refuse(stub: Any, changes: dict[str, Any], field: str) -> None:
    """One fault: Keras raises, the client names the field, and the server names it in the same words."""
    arguments = VALID | changes
    assert truth.refusal(keras_arguments(arguments), SHAPE) is not None
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
    assert truth.refusal(keras_arguments(arguments), shape) is not None
    assert_both_refuse(stub, arguments, [field], shape)


@pytest.mark.parametrize(
    ("use_bias", "kernel", "bias", "field"),
    [
        (True, (3, 3, 4, 5), (4,), "kernel"),
        (True, (3, 2, 4, 4), (4,), "kernel"),
        (True, (4, 4, 3, 3), (4,), "kernel"),
        (True, (3, 3, 16), (4,), "kernel"),
        (True, (1, 3, 3, 4, 4), (4,), "kernel"),
        (True, (3, 3, 2, 4), (4,), "input"),
        (False, (3, 3, 5, 4), None, "input"),
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
        truth.run(arguments, x, *given)
    with pytest.raises(convserve.InvalidWeightsError) as caught:
        planned([convserve.Layer(convserve.Conv2D(**arguments), *given)], SHAPE, "float32", None)
    request = request_of(message_of(arguments))
    weights = request.layers[0].inline.weights
    for name, array in zip(("kernel", "bias"), given, strict=True):
        if array is not None:
            getattr(weights, name).CopyFrom(tensor_of(array))
    answer = refused(lambda: stub.Convolve(request), "INVALID_WEIGHTS")
    assert answer == {each.field: each.description for each in caught.value.violations}
    assert list(answer) == [field]


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
    assert truth.refusal(keras_arguments(arguments), shape) is None
    assert_both_refuse(stub, arguments, [field], shape)
