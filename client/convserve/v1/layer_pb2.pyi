from convserve.v1 import conv2d_pb2 as _conv2d_pb2
from convserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LayerReference(_message.Message):
    __slots__ = ("digest", "name", "inline")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    name: str
    inline: InlineLayer
    def __init__(self, digest: _Optional[bytes] = ..., name: _Optional[str] = ..., inline: _Optional[_Union[InlineLayer, _Mapping]] = ...) -> None: ...

class InlineLayer(_message.Message):
    __slots__ = ("conv2d", "store", "weights")
    CONV2D_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    conv2d: _conv2d_pb2.Conv2D
    store: bool
    weights: Weights
    def __init__(self, conv2d: _Optional[_Union[_conv2d_pb2.Conv2D, _Mapping]] = ..., store: bool = ..., weights: _Optional[_Union[Weights, _Mapping]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("bias", "kernel")
    BIAS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    bias: _tensor_pb2.Tensor
    kernel: _tensor_pb2.Tensor
    def __init__(self, bias: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., kernel: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class StoredLayer(_message.Message):
    __slots__ = ("digest", "names", "conv2d", "kernel_shape", "parameter_count", "weight_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    CONV2D_FIELD_NUMBER: _ClassVar[int]
    KERNEL_SHAPE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    names: _containers.RepeatedScalarFieldContainer[str]
    conv2d: _conv2d_pb2.Conv2D
    kernel_shape: _containers.RepeatedScalarFieldContainer[int]
    parameter_count: int
    weight_bytes: int
    def __init__(self, digest: _Optional[bytes] = ..., names: _Optional[_Iterable[str]] = ..., conv2d: _Optional[_Union[_conv2d_pb2.Conv2D, _Mapping]] = ..., kernel_shape: _Optional[_Iterable[int]] = ..., parameter_count: _Optional[int] = ..., weight_bytes: _Optional[int] = ...) -> None: ...

class Losses(_message.Message):
    __slots__ = ("kernel", "bias", "activity")
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    kernel: float
    bias: float
    activity: float
    def __init__(self, kernel: _Optional[float] = ..., bias: _Optional[float] = ..., activity: _Optional[float] = ...) -> None: ...
