"""Faulty layers by both ways: given to the client, and written into messages that its checks never see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import pytest

import convserve
from convserve.v1 import conv2d_pb2, convolution_service_pb2, tensor_pb2
from tests.support.keras.truth import keras
from tests.support.raw.calls import checked

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
"""An input that it takes."""

NAN, INFINITY = float("nan"), float("inf")
TOO_LARGE_FOR_FLOAT32 = 3.5e38


def named(class_name: str, **config: Any) -> dict[str, Any]:
    """Returns Keras' dictionary of an initializer, a regularizer, a constraint or an activation."""
    return {"class_name": class_name, "config": config}


def identity(value: object) -> str:
    """Returns a parameter's part of a test's name, the same in every process."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text[:90]


def keras_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments for Keras, in which an activation with parameters is a function."""
    found = dict(arguments)
    if isinstance(found.get("activation"), dict):
        function, config = found["activation"]["class_name"], found["activation"]["config"]
        found["activation"] = functools.partial(getattr(keras.activations, function), **config)
    return found


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
