"""What callers are told of a model: its inputs and outputs, and how it is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from convserve.activations import GLU
from convserve.layers import messages as conv2d_message
from convserve.layers.conv2d import Conv2D
from convserve.tensors.codec import Shape
from convserve_server.layer_store.stored_layer import StoredLayer
from convserve_server.open_inference.infer_tensors import DATATYPES
from convserve_server.open_inference.layer_models import STATELESS
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.v2 import model_config_pb2 as config

PLATFORM = "convserve"
_ANY_SIZE = -1
# No number of samples is too many by itself: a call's bytes are bounded.
_MAX_SAMPLES = 2**31 - 1
_CHANNEL_AXIS = {"channels_last": 3, "channels_first": 1}
_FORMATS: dict[str, Any] = {
    "channels_last": config.ModelInput.FORMAT_NHWC,
    "channels_first": config.ModelInput.FORMAT_NCHW,
}
_STATELESS_DIMENSIONS = {"x": 4, "kernel": 4, "bias": 1}


def input_shape(conv2d: Conv2D, kernel_shape: Shape) -> list[int]:
    """Returns the shape of a layer's input, -1 for any size."""
    return _shape(conv2d, kernel_shape[2] * conv2d.groups)


def output_shape(conv2d: Conv2D) -> list[int]:
    """Returns the shape of a layer's output, -1 for any size."""
    axis, channels = _CHANNEL_AXIS[conv2d.data_format], conv2d.filters
    if isinstance(conv2d.activation, GLU) and conv2d.activation.axis % 4 == axis:
        channels //= 2
    return _shape(conv2d, channels)


def metadata(name: str, versions: Sequence[str], layers: Sequence[StoredLayer]) -> messages.ModelMetadataResponse:
    """Returns the metadata of a model of stored layers, in order."""
    first, last = layers[0], layers[-1]
    tensor = messages.ModelMetadataResponse.TensorMetadata
    return messages.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=PLATFORM,
        inputs=[
            tensor(
                name="x",
                datatype=DATATYPES[first.config.compute_dtype],
                shape=input_shape(first.config, first.kernel_shape),
            )
        ],
        outputs=[tensor(name="y", datatype=DATATYPES[last.config.compute_dtype], shape=output_shape(last.config))],
    )


def stateless_metadata(versions: Sequence[str]) -> messages.ModelMetadataResponse:
    """Returns the metadata of the model whose kernel comes with the request."""
    tensor = messages.ModelMetadataResponse.TensorMetadata
    return messages.ModelMetadataResponse(
        name=STATELESS,
        versions=versions,
        platform=PLATFORM,
        inputs=[
            tensor(name=name, datatype="FP32", shape=[_ANY_SIZE] * dimensions)
            for name, dimensions in _STATELESS_DIMENSIONS.items()
        ],
        outputs=[tensor(name="y", datatype="FP32", shape=[_ANY_SIZE] * 4)],
    )


def model_config(name: str, layers: Sequence[StoredLayer]) -> config.ModelConfig:
    """Returns how a model of stored layers is served: in batches, so that dimensions are without the batch's."""
    first, last = layers[0], layers[-1]
    return config.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=PLATFORM,
        version_policy=config.ModelVersionPolicy(all=config.ModelVersionPolicy.All()),
        max_batch_size=_MAX_SAMPLES,
        input=[
            config.ModelInput(
                name="x",
                data_type=_data_type(first.config),
                format=_FORMATS[first.config.data_format],
                dims=input_shape(first.config, first.kernel_shape)[1:],
            )
        ],
        output=[config.ModelOutput(name="y", data_type=_data_type(last.config), dims=output_shape(last.config)[1:])],
        dynamic_batching=config.ModelDynamicBatching(),
        parameters={
            f"layers[{index}]": config.ModelParameter(
                string_value=json_format.MessageToJson(conv2d_message.to_message(each.config), indent=None)
            )
            for index, each in enumerate(layers)
        },
        model_transaction_policy=config.ModelTransactionPolicy(decoupled=False),
    )


def stateless_config() -> config.ModelConfig:
    """Returns how the stateless model is served: not in batches, as a kernel has none, so that dimensions are whole."""
    return config.ModelConfig(
        name=STATELESS,
        platform=PLATFORM,
        backend=PLATFORM,
        version_policy=config.ModelVersionPolicy(all=config.ModelVersionPolicy.All()),
        max_batch_size=0,
        input=[
            config.ModelInput(
                name=name, data_type=config.TYPE_FP32, dims=[_ANY_SIZE] * dimensions, optional=name == "bias"
            )
            for name, dimensions in _STATELESS_DIMENSIONS.items()
        ],
        output=[config.ModelOutput(name="y", data_type=config.TYPE_FP32, dims=[_ANY_SIZE] * 4)],
        model_transaction_policy=config.ModelTransactionPolicy(decoupled=False),
    )


def _shape(conv2d: Conv2D, channels: int) -> list[int]:
    shape = [_ANY_SIZE] * 4
    shape[_CHANNEL_AXIS[conv2d.data_format]] = channels
    return shape


def _data_type(conv2d: Conv2D) -> Any:
    return config.DataType.Value(f"TYPE_{DATATYPES[conv2d.compute_dtype]}")
