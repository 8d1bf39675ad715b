"""What callers learn of a model: its inputs and outputs, and how it is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf import json_format

from convserve.activations import GLU
from convserve.layers import messages as conv2d_message
from convserve.layers.conv2d import Conv2D
from convserve.layers.plan import channel_axis
from convserve.tensors.codec import Shape
from convserve_server.layer_store.stored_layer import StoredLayer
from convserve_server.open_inference.infer_tensors import DATATYPES
from convserve_server.open_inference.v2 import inference_service_pb2 as messages
from convserve_server.open_inference.v2 import model_config_pb2 as config

PLATFORM = "convserve"
_ANY_SIZE = -1
# No number of samples is too many: the server bounds a call's bytes.
_MAX_SAMPLES = 2**31 - 1
_FORMATS = {"channels_last": config.ModelInput.FORMAT_NHWC, "channels_first": config.ModelInput.FORMAT_NCHW}


class _Tensor(NamedTuple):
    """An input or output; as an input with its layout."""

    name: str
    dtype: str
    shape: list[int]
    layout: Any = config.ModelInput.FORMAT_NONE
    optional: bool = False


_STATELESS_TENSORS = [
    *(_Tensor(name, "float32", [_ANY_SIZE] * 4) for name in ("x", "kernel")),
    _Tensor("bias", "float32", [_ANY_SIZE], optional=True),
    _Tensor("y", "float32", [_ANY_SIZE] * 4),
]


def input_shape(conv2d: Conv2D, kernel_shape: Shape) -> list[int]:
    """Returns the shape of a layer's input, -1 for any size."""
    return _shape(conv2d, kernel_shape[2] * conv2d.groups)


def output_shape(conv2d: Conv2D) -> list[int]:
    """Returns the shape of a layer's output, -1 for any size."""
    halves = isinstance(conv2d.activation, GLU) and conv2d.activation.axis % 4 == channel_axis(conv2d)
    return _shape(conv2d, conv2d.filters // 2 if halves else conv2d.filters)


def metadata(name: str, versions: Sequence[str], layers: Sequence[StoredLayer]) -> messages.ModelMetadataResponse:
    """Returns the metadata of a model of layers in order, or of the stateless model, which has none."""
    answer = messages.ModelMetadataResponse(name=name, versions=versions, platform=PLATFORM)
    for tensor in _tensors(layers):
        listed = answer.outputs if tensor.name == "y" else answer.inputs
        listed.add(name=tensor.name, datatype=DATATYPES[tensor.dtype], shape=tensor.shape)
    return answer


def model_config(name: str, layers: Sequence[StoredLayer]) -> config.ModelConfig:
    """Returns how a model is served.

    Layers are served in batches, so that dimensions are without the batch's. The stateless model is not, as a kernel
    has no batch, so that dimensions are whole.
    """
    model = config.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=PLATFORM,
        version_policy=config.ModelVersionPolicy(all=config.ModelVersionPolicy.All()),
        max_batch_size=_MAX_SAMPLES if layers else 0,
        dynamic_batching=config.ModelDynamicBatching() if layers else None,
        model_transaction_policy=config.ModelTransactionPolicy(decoupled=False),
    )
    for tensor in _tensors(layers):
        dims, dtype = tensor.shape[1 if layers else 0 :], f"TYPE_{DATATYPES[tensor.dtype]}"
        if tensor.name == "y":
            model.output.add(name=tensor.name, data_type=dtype, dims=dims)
        else:
            layout, optional = tensor.layout, tensor.optional
            model.input.add(name=tensor.name, data_type=dtype, format=layout, dims=dims, optional=optional)
    for index, layer in enumerate(layers):
        text = json_format.MessageToJson(conv2d_message.to_message(layer.config), indent=None)
        model.parameters[f"layers[{index}]"].string_value = text
    return model


def _tensors(layers: Sequence[StoredLayer]) -> list[_Tensor]:
    """Returns the inputs and then the output of layers in order, or of the stateless model."""
    if not layers:
        return _STATELESS_TENSORS
    first, last = layers[0].config, layers[-1].config
    shape = input_shape(first, layers[0].kernel_shape)
    x = _Tensor("x", first.compute_dtype, shape, _FORMATS[first.data_format])
    return [x, _Tensor("y", last.compute_dtype, output_shape(last))]


def _shape(conv2d: Conv2D, channels: int) -> list[int]:
    shape = [_ANY_SIZE] * 4
    shape[channel_axis(conv2d)] = channels
    return shape
