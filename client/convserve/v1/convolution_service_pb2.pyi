from convserve.v1 import conv2d_pb2 as _conv2d_pb2
from convserve.v1 import layer_pb2 as _layer_pb2
from convserve.v1 import plan_pb2 as _plan_pb2
from convserve.v1 import server_info_pb2 as _server_info_pb2
from convserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResultOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_ORDER_UNSPECIFIED: _ClassVar[ResultOrder]
    RESULT_ORDER_AS_SENT: _ClassVar[ResultOrder]
    RESULT_ORDER_AS_COMPLETED: _ClassVar[ResultOrder]
RESULT_ORDER_UNSPECIFIED: ResultOrder
RESULT_ORDER_AS_SENT: ResultOrder
RESULT_ORDER_AS_COMPLETED: ResultOrder

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server_info",)
    SERVER_INFO_FIELD_NUMBER: _ClassVar[int]
    server_info: _server_info_pb2.ServerInfo
    def __init__(self, server_info: _Optional[_Union[_server_info_pb2.ServerInfo, _Mapping]] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("layers", "given", "input_shape", "input_dtype", "output_dtype")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[_layer_pb2.LayerReference]
    given: _containers.RepeatedScalarFieldContainer[int]
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    input_dtype: _tensor_pb2.Dtype
    output_dtype: _tensor_pb2.Dtype
    def __init__(self, layers: _Optional[_Iterable[_Union[_layer_pb2.LayerReference, _Mapping]]] = ..., given: _Optional[_Iterable[int]] = ..., input_shape: _Optional[_Iterable[int]] = ..., input_dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., output_dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("plan", "admission")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    plan: _plan_pb2.Plan
    admission: Admission
    def __init__(self, plan: _Optional[_Union[_plan_pb2.Plan, _Mapping]] = ..., admission: _Optional[_Union[Admission, _Mapping]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("admitted", "refusal")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    admitted: bool
    refusal: str
    def __init__(self, admitted: bool = ..., refusal: _Optional[str] = ...) -> None: ...

class ConvolveRequest(_message.Message):
    __slots__ = ("layers", "output_dtype", "unbatched", "output_memory", "input")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    UNBATCHED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MEMORY_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[_layer_pb2.LayerReference]
    output_dtype: _tensor_pb2.Dtype
    unbatched: bool
    output_memory: _tensor_pb2.SharedMemory
    input: _tensor_pb2.Tensor
    def __init__(self, layers: _Optional[_Iterable[_Union[_layer_pb2.LayerReference, _Mapping]]] = ..., output_dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., unbatched: bool = ..., output_memory: _Optional[_Union[_tensor_pb2.SharedMemory, _Mapping]] = ..., input: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ConvolveResponse(_message.Message):
    __slots__ = ("layers", "timing", "batch_size", "device", "warm", "output")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerOutcome]
    timing: Timing
    batch_size: int
    device: str
    warm: bool
    output: _tensor_pb2.Tensor
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerOutcome, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., batch_size: _Optional[int] = ..., device: _Optional[str] = ..., warm: bool = ..., output: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class LayerOutcome(_message.Message):
    __slots__ = ("conv2d", "losses")
    CONV2D_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    conv2d: _conv2d_pb2.Conv2D
    losses: _layer_pb2.Losses
    def __init__(self, conv2d: _Optional[_Union[_conv2d_pb2.Conv2D, _Mapping]] = ..., losses: _Optional[_Union[_layer_pb2.Losses, _Mapping]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_us", "compute_us")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    compute_us: int
    def __init__(self, queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ...) -> None: ...

class ConvolveStreamRequest(_message.Message):
    __slots__ = ("start", "item", "piece")
    START_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    start: StreamStart
    item: StreamItem
    piece: bytes
    def __init__(self, start: _Optional[_Union[StreamStart, _Mapping]] = ..., item: _Optional[_Union[StreamItem, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class StreamStart(_message.Message):
    __slots__ = ("layers", "output_dtype", "order", "piece_bytes", "unbatched", "expected_bytes")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNBATCHED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[_layer_pb2.LayerReference]
    output_dtype: _tensor_pb2.Dtype
    order: ResultOrder
    piece_bytes: int
    unbatched: bool
    expected_bytes: int
    def __init__(self, layers: _Optional[_Iterable[_Union[_layer_pb2.LayerReference, _Mapping]]] = ..., output_dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., order: _Optional[_Union[ResultOrder, str]] = ..., piece_bytes: _Optional[int] = ..., unbatched: bool = ..., expected_bytes: _Optional[int] = ...) -> None: ...

class StreamItem(_message.Message):
    __slots__ = ("item_id", "dtype", "shape")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    dtype: _tensor_pb2.Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, item_id: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ConvolveStreamResponse(_message.Message):
    __slots__ = ("item_id", "result", "error", "piece")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    result: ConvolveResponse
    error: StreamItemError
    piece: bytes
    def __init__(self, item_id: _Optional[int] = ..., result: _Optional[_Union[ConvolveResponse, _Mapping]] = ..., error: _Optional[_Union[StreamItemError, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class StreamItemError(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("output_bytes", "payload")
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    output_bytes: int
    payload: bytes
    def __init__(self, output_bytes: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class EchoResponse(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...
