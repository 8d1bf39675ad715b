"""Names, parameters and defaults are Keras', in Python, on the wire, and in configurations that come back from it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

import convserve
from convserve import activations, constraints, initializers, regularizers
from convserve._keras_object import KerasObject
from convserve.v1 import convolution_service_pb2
from tests.support.keras import truth
from tests.support.keras.calls import Call, calls, examples, spelled
from tests.support.keras.refusals import message_of, named, tensor_of
from tests.support.keras.truth import keras
from tests.support.raw.calls import raw_caller
from tests.support.servers.server_process import RunningServer

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
    layer = truth.keras_layer({name: spelled(value, call.spelling) for name, value in values.items()})
    assert convserve.Conv2D.from_keras(layer) == config
    assert convserve.Conv2D.from_keras(layer.get_config()) == config
    assert convserve.Conv2D.from_keras(keras.layers.Conv2D.from_config(config.to_keras_config())) == config


@pytest.fixture
def stub(server: RunningServer) -> Iterator[Any]:
    """The generated stub, which checks nothing."""
    with raw_caller(server.target) as caller:
        yield caller.stub


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
