"""Conv2D: what it takes, how it brings it to one form, what it refuses and in which words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convserve
from convserve import Conv2D, InvalidConfigurationError
from convserve.activations import Activation, LeakyReLU, ReLU
from convserve.constraints import MaxNorm
from convserve.initializers import GlorotUniform, HeNormal, Initializer
from convserve.layers import messages
from convserve.regularizers import L2, Regularizer
from convserve.v1 import conv2d_pb2

EVERYTHING = Conv2D(
    filters=8, kernel_size=(3, 5), strides=(1, 2), padding=((1, 2), (0, 3)), data_format="channels_first", groups=2,
    activation=ReLU(negative_slope=0.1, max_value=6.0), use_bias=False, kernel_initializer=HeNormal(seed=-3),
    bias_initializer="ones", kernel_regularizer=L2(0.5), bias_regularizer="l1", activity_regularizer="l1l2",
    kernel_constraint=MaxNorm(3, axis=[0, 1, 2]), bias_constraint="non_neg", name="stem", dtype="mixed_bfloat16",
    trainable=False, input_shape=(4, None, 32),
)  # fmt: skip


def test_defaults_are_keras_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    conv2d = Conv2D(4, 3)
    assert (conv2d.kernel_size, conv2d.strides, conv2d.dilation_rate) == ((3, 3), (1, 1), (1, 1))
    assert (conv2d.padding, conv2d.data_format, conv2d.groups, conv2d.use_bias) == ("valid", "channels_last", 1, True)
    assert conv2d.activation.keras_name == "linear"
    assert (conv2d.kernel_initializer, conv2d.bias_initializer.keras_name) == (GlorotUniform(), "zeros")
    assert (conv2d.dtype, conv2d.trainable, conv2d.name, conv2d.input_shape) == ("float32", True, None, None)


def test_none_for_data_format_and_dtype_is_what_keras_json_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keras.json").write_text(json.dumps({"image_data_format": "channels_first", "floatx": "float16"}))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert (Conv2D(4, 3).data_format, Conv2D(4, 3).dtype) == ("channels_first", "float16")
    assert Conv2D(4, 3, data_format="channels_last").data_format == "channels_last"
    (tmp_path / "keras.json").write_text("{broken")
    assert Conv2D(4, 3).data_format == "channels_last"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"image_data_format": "nhwc"}, "data_format=None, which is 'nhwc' by 'image_data_format' in keras.json"),
        ({"floatx": "float8"}, "dtype=None, which is 'float8' by 'floatx' in keras.json"),
    ],
)
def test_a_wrong_value_in_keras_json_is_said_to_be_there(
    given: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keras.json").write_text(json.dumps(given))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InvalidConfigurationError, match=text):
        Conv2D(4, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kernel_size": [3, 5]}, {"kernel_size": (3, 5)}),
        ({"kernel_size": np.int64(3)}, {"kernel_size": (3, 3)}),
        ({"strides": np.array([2, 1])}, {"strides": (2, 1)}),
        ({"padding": "SAME"}, {"padding": "same"}),
        ({"padding": [[1, 2], [3, 4]]}, {"padding": ((1, 2), (3, 4))}),
        ({"padding": 1}, {"padding": ((1, 1), (1, 1))}),
        ({"padding": 0}, {"padding": ((0, 0), (0, 0))}),
        ({"padding": (2, 1)}, {"padding": ((2, 2), (1, 1))}),
        ({"padding": np.array([2, 1])}, {"padding": ((2, 2), (1, 1))}),
        ({"padding": np.array([[1, 2], [3, 4]])}, {"padding": ((1, 2), (3, 4))}),
        ({"strides": 2, "dilation_rate": 3, "padding": 0}, {"padding": ((0, 0), (0, 0)), "dilation_rate": (3, 3)}),
        ({"data_format": "Channels_First"}, {"data_format": "channels_first"}),
        ({"activation": "swish"}, {"activation": Activation.members["silu"]()}),
        ({"activation": {"class_name": "leaky_relu", "config": {"negative_slope": 1}}}, {"activation": LeakyReLU(1.0)}),
        ({"kernel_initializer": None}, {"kernel_initializer": GlorotUniform()}),
        ({"bias_initializer": None}, {"bias_initializer": GlorotUniform()}),
        ({"bias_initializer": {"class_name": "HeNormal", "config": {"seed": 1}}}, {"bias_initializer": HeNormal(1)}),
        ({"kernel_regularizer": {"class_name": "L2", "config": {"l2": 1}}}, {"kernel_regularizer": L2(1.0)}),
        ({"kernel_constraint": "MaxNorm"}, {"kernel_constraint": MaxNorm()}),
        ({"dtype": np.float64}, {"dtype": "float64"}),
        ({"dtype": np.dtype("float16")}, {"dtype": "float16"}),
        ({"dtype": {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}}, {"dtype": "mixed_float16"}),
        ({"use_bias": None}, {"use_bias": False}),
        ({"input_shape": [8, None, 3]}, {"input_shape": (8, None, 3)}),
        ({"name": ""}, {"name": None}),
    ],
)  # fmt: skip
def test_keras_spellings_come_to_one_form(given: dict[str, Any], expected: dict[str, Any]) -> None:
    conv2d = Conv2D(**{"filters": 4, "kernel_size": 3, **given})
    assert {field: getattr(conv2d, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"filters": 0}, "filters", "greater than 0"),
        ({"filters": -1}, "filters", "filters=-1"),
        ({"filters": 2.0}, "filters", "filters=2.0"),
        ({"filters": None}, "filters", "filters=None"),
        ({"filters": 2**31}, "filters", "2147483647"),
        ({"kernel_size": 0}, "kernel_size", "kernel_size=0"),
        ({"kernel_size": (3,)}, "kernel_size", "(height, width)"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size", "(3, 3, 3)"),
        ({"kernel_size": (3.0, 3.0)}, "kernel_size", "(3.0, 3.0)"),
        ({"kernel_size": "33"}, "kernel_size", "'33'"),
        ({"strides": -1}, "strides", "strides=-1"),
        ({"strides": 2, "dilation_rate": 2}, "strides", "dilation_rate=(2, 2)"),
        ({"strides": 2, "dilation_rate": 2}, "strides", "padding=0 (--padding 0) is 'valid'."),
        ({"strides": (2, 1), "dilation_rate": (1, 2), "padding": "same"}, "strides", "((top, bottom), (left"),
        ({"dilation_rate": (1, 0)}, "dilation_rate", "(1, 0)"),
        ({"groups": 0}, "groups", "groups=0"),
        ({"groups": 3}, "filters", "divisible by groups=3"),
        ({"padding": "causal"}, "padding", "'causal'"),
        ({"padding": True}, "padding", "padding=True"),
        ({"padding": (True, 1)}, "padding", "(True, 1)"),
        ({"padding": ((1, 1), (False, 1))}, "padding", "(False, 1)"),
        ({"padding": -1}, "padding", "amounts from 0"),
        ({"padding": 1.0}, "padding", "((top, bottom), (left, right))"),
        ({"padding": (1, 2, 3, 4)}, "padding", "or PyTorch's one or two"),
        ({"padding": [1]}, "padding", "padding=[1]"),
        ({"padding": ((1, -1), (0, 0))}, "padding", "-1"),
        ({"padding": None}, "padding", "padding=None"),
        ({"data_format": "NHWC"}, "data_format", "'channels_last'"),
        ({"activation": "Relu"}, "activation", "Did you mean 'relu'?"),
        ({"activation": "ReLU"}, "activation", "'ReLU'"),
        ({"activation": {"class_name": "threshold", "config": {"default_value": 1}}}, "activation.threshold", "finite"),
        ({"activation": {"class_name": "relu", "config": {"slope": 1}}}, "activation", "negative_slope"),
        ({"activation": {"class_name": "softmax", "config": {"axis": 0}}}, "activation.axis", "axis 0 would mix"),
        ({"activation": lambda x: x}, "activation", "keras.activations"),
        ({"use_bias": "no"}, "use_bias", "'no'"),
        ({"trainable": 1}, "trainable", "trainable=1"),
        ({"name": "a/b"}, "name", "without '/'"),
        ({"name": 3}, "name", "name=3"),
        ({"name": "\udc80"}, "name", "1000 characters"),
        ({"name": np.arange(2)}, "name", "1000 characters"),
        ({"dtype": "int8"}, "dtype", "mixed_bfloat16"),
        ({"dtype": "float"}, "dtype", "'float'"),
        ({"kernel_initializer": "glorot"}, "kernel_initializer", "Did you mean 'glorot"),
        ({"kernel_initializer": np.ones((3, 3, 1, 4))}, "kernel_initializer", "pass given weights as kernel="),
        ({"kernel_initializer": {"class_name": "os.system", "config": {}}}, "kernel_initializer", "'os.system'"),
        ({"kernel_initializer": {"class_name": "HeNormal", "config": {"seed": 1.5}}}, "kernel_initializer.seed", "1.5"),
        ({"kernel_regularizer": {"class_name": "L2", "config": {"l2": -1}}}, "kernel_regularizer.l2", "at least 0"),
        ({"kernel_regularizer": {"class_name": "L1", "config": {"l1": float("nan")}}}, "kernel_regularizer.l1", "nan"),
        ({"kernel_regularizer": "l1_l2"}, "kernel_regularizer", "Did you mean 'l1l2'?"),
        ({"activity_regularizer": "orthogonal_regularizer"}, "activity_regularizer", "rank 2"),
        ({"kernel_constraint": {"class_name": "MaxNorm", "config": {"axis": 7}}}, "kernel_constraint.axis", "-4 to 3"),
        ({"input_shape": (28, 28)}, "input_shape", "three dimensions"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_keras_name(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidConfigurationError) as refused:
        Conv2D(**{"filters": 4, "kernel_size": 3, **given})
    (violation,) = refused.value.violations
    assert violation.field == field
    assert words in violation.description
    assert "Expected" in violation.description
    assert "Received" in violation.description


@pytest.mark.parametrize(("config", "field"), [({"filters": 1}, "kernel_size"), ({}, "filters"), ({"a": 1}, "config")])
def test_a_dictionary_that_is_no_configuration_is_refused(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfigurationError) as refused:
        Conv2D.from_keras(config)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_one_error_names_everything_that_is_wrong() -> None:
    with pytest.raises(InvalidConfigurationError) as refused:
        Conv2D(0, (3,), padding="causal", activation="rellu", dtype="int8", trainable=1)  # type: ignore[arg-type]
    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["filters", "kernel_size", "padding", "activation", "dtype", "trainable"]
    assert str(refused.value).count("\n") == len(fields) - 1


def test_configuration_is_an_immutable_value() -> None:
    same = Conv2D(**{field.name: getattr(EVERYTHING, field.name) for field in dataclasses.fields(EVERYTHING)})
    assert same == EVERYTHING
    assert hash(same) == hash(EVERYTHING)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVERYTHING.filters = 3  # type: ignore[misc]
    assert EVERYTHING.replace(filters=2) != EVERYTHING


def test_reprs_of_parameters_are_calls_without_defaults() -> None:
    values = [GlorotUniform(), GlorotUniform(seed=0), HeNormal(0, input_axes=[0]), ReLU(max_value=6.0), L2()]
    expected = "[GlorotUniform(), GlorotUniform(seed=0), HeNormal(seed=0, input_axes=(0,)), ReLU(max_value=6.0), L2()]"
    assert repr(values) == expected


def test_repr_is_the_call_without_defaults() -> None:
    assert repr(Conv2D(4, 3, strides=2)) == "Conv2D(filters=4, kernel_size=(3, 3), strides=(2, 2))"


@pytest.mark.parametrize("conv2d", [Conv2D(4, 3), EVERYTHING])
def test_message_round_trip_keeps_everything(conv2d: Conv2D) -> None:
    assert messages.from_message(messages.to_message(conv2d)) == conv2d


@pytest.mark.parametrize("family", [Activation, Initializer, Regularizer, convserve.constraints.Constraint])
def test_every_named_object_survives_the_wire(family: Any) -> None:
    for member in set(family.members.values()):
        # threshold is the only one without defaults
        value = member(0.5, 0.25) if member.__name__ == "Threshold" else member()
        assert family.from_message(value.to_message(), "field") == value


def test_message_fields_that_are_not_set_have_keras_defaults() -> None:
    message = conv2d_pb2.Conv2D(
        filters=4, kernel_size=conv2d_pb2.Size2D(height=3, width=3), data_format=conv2d_pb2.DATA_FORMAT_CHANNELS_LAST
    )
    plain = Conv2D(4, 3, data_format="channels_last", dtype="float32")
    assert messages.from_message(message) == plain
    message.activation.leaky_relu.SetInParent()
    assert messages.from_message(message).activation == LeakyReLU(0.2)


def test_message_without_data_format_is_refused() -> None:
    message = messages.to_message(Conv2D(4, 3))
    message.data_format = conv2d_pb2.DATA_FORMAT_UNSPECIFIED
    with pytest.raises(InvalidConfigurationError, match=r"data_format: .*not set"):
        messages.from_message(message)


def test_client_and_server_refuse_in_the_same_words() -> None:
    """A message that breaks the same rule is refused with the text of the constructor."""
    message = messages.to_message(Conv2D(4, 3))
    message.filters = -1
    message.strides.height = 0
    with pytest.raises(InvalidConfigurationError) as by_message:
        messages.from_message(message)
    with pytest.raises(InvalidConfigurationError) as by_call:
        Conv2D(-1, 3, strides=(0, 1))
    assert str(by_message.value) == str(by_call.value)


def test_seed_reaches_only_random_initializers_without_one() -> None:
    seeded = Conv2D(4, 3, kernel_initializer=HeNormal(seed=1), bias_initializer="random_normal").with_seed(9)
    assert seeded.kernel_initializer == HeNormal(seed=1)
    assert seeded.bias_initializer.parameters["seed"] == 9
    assert Conv2D(4, 3).with_seed(9).bias_initializer.keras_name == "zeros"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"kernel_initializer": "identity"}, "kernel_initializer"),
        ({"kernel_initializer": "stft"}, "kernel_initializer"),
        ({"bias_initializer": "identity"}, "bias_initializer"),
        ({"bias_initializer": "orthogonal"}, "bias_initializer"),
        ({"kernel_initializer": "orthogonal", "dtype": "bfloat16"}, "kernel_initializer"),
    ],
)
def test_initializers_that_cannot_draw_are_refused_when_they_must(given: dict[str, Any], field: str) -> None:
    conv2d = Conv2D(4, 3, **given)
    with pytest.raises(InvalidConfigurationError) as refused:
        conv2d.check_initializers()
    assert [violation.field for violation in refused.value.violations] == [field]
    if field == "bias_initializer":
        conv2d.replace(use_bias=False).check_initializers()
