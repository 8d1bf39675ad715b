from convserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerInfo(_message.Message):
    __slots__ = ("version", "tensorflow_version", "keras_version", "devices", "input_dtypes", "output_dtypes", "numeric_mode", "limits", "usage", "shared_memory_address", "shared_memory_ticket")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TENSORFLOW_VERSION_FIELD_NUMBER: _ClassVar[int]
    KERAS_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    INPUT_DTYPES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPES_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_MODE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_TICKET_FIELD_NUMBER: _ClassVar[int]
    version: str
    tensorflow_version: str
    keras_version: str
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    input_dtypes: _containers.RepeatedScalarFieldContainer[_tensor_pb2.Dtype]
    output_dtypes: _containers.RepeatedScalarFieldContainer[_tensor_pb2.Dtype]
    numeric_mode: NumericMode
    limits: Limits
    usage: Usage
    shared_memory_address: str
    shared_memory_ticket: bytes
    def __init__(self, version: _Optional[str] = ..., tensorflow_version: _Optional[str] = ..., keras_version: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., input_dtypes: _Optional[_Iterable[_Union[_tensor_pb2.Dtype, str]]] = ..., output_dtypes: _Optional[_Iterable[_Union[_tensor_pb2.Dtype, str]]] = ..., numeric_mode: _Optional[_Union[NumericMode, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., shared_memory_address: _Optional[str] = ..., shared_memory_ticket: _Optional[bytes] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("stored_layers", "stored_memory_bytes", "evictions", "traces")
    STORED_LAYERS_FIELD_NUMBER: _ClassVar[int]
    STORED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    stored_layers: int
    stored_memory_bytes: int
    evictions: int
    traces: int
    def __init__(self, stored_layers: _Optional[int] = ..., stored_memory_bytes: _Optional[int] = ..., evictions: _Optional[int] = ..., traces: _Optional[int] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "kind", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    description: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class NumericMode(_message.Message):
    __slots__ = ("tf32", "onednn")
    TF32_FIELD_NUMBER: _ClassVar[int]
    ONEDNN_FIELD_NUMBER: _ClassVar[int]
    tf32: bool
    onednn: bool
    def __init__(self, tf32: bool = ..., onednn: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_call_bytes", "max_layers_per_call", "max_call_flops")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LAYERS_PER_CALL_FIELD_NUMBER: _ClassVar[int]
    MAX_CALL_FLOPS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_call_bytes: int
    max_layers_per_call: int
    max_call_flops: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_call_bytes: _Optional[int] = ..., max_layers_per_call: _Optional[int] = ..., max_call_flops: _Optional[int] = ...) -> None: ...
