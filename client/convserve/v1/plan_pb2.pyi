from convserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Plan(_message.Message):
    __slots__ = ("layers", "output_shape", "output_dtype", "parameters", "flops", "input_bytes", "weight_bytes", "output_bytes", "memory_bytes")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    INPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerPlan]
    output_shape: _containers.RepeatedScalarFieldContainer[int]
    output_dtype: _tensor_pb2.Dtype
    parameters: int
    flops: int
    input_bytes: int
    weight_bytes: int
    output_bytes: int
    memory_bytes: int
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerPlan, _Mapping]]] = ..., output_shape: _Optional[_Iterable[int]] = ..., output_dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., parameters: _Optional[int] = ..., flops: _Optional[int] = ..., input_bytes: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., output_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class LayerPlan(_message.Message):
    __slots__ = ("output_shape", "kernel_shape", "parameters", "flops")
    OUTPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_SHAPE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    output_shape: _containers.RepeatedScalarFieldContainer[int]
    kernel_shape: _containers.RepeatedScalarFieldContainer[int]
    parameters: int
    flops: int
    def __init__(self, output_shape: _Optional[_Iterable[int]] = ..., kernel_shape: _Optional[_Iterable[int]] = ..., parameters: _Optional[int] = ..., flops: _Optional[int] = ...) -> None: ...
