from convserve.v1 import conv2d_pb2 as _conv2d_pb2
from convserve.v1 import layer_pb2 as _layer_pb2
from convserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoredLayerReference(_message.Message):
    __slots__ = ("digest", "name")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    name: str
    def __init__(self, digest: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class NameMove(_message.Message):
    __slots__ = ("name", "digest", "absent", "move_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    MOVE_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    absent: bool
    move_id: bytes
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., absent: bool = ..., move_id: _Optional[bytes] = ...) -> None: ...

class WeightsHeader(_message.Message):
    __slots__ = ("dtype", "kernel_shape", "has_bias")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_SHAPE_FIELD_NUMBER: _ClassVar[int]
    HAS_BIAS_FIELD_NUMBER: _ClassVar[int]
    dtype: _tensor_pb2.Dtype
    kernel_shape: _containers.RepeatedScalarFieldContainer[int]
    has_bias: bool
    def __init__(self, dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., kernel_shape: _Optional[_Iterable[int]] = ..., has_bias: bool = ...) -> None: ...

class PutLayerRequest(_message.Message):
    __slots__ = ("start", "piece")
    START_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    start: PutLayerStart
    piece: bytes
    def __init__(self, start: _Optional[_Union[PutLayerStart, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class PutLayerStart(_message.Message):
    __slots__ = ("conv2d", "name", "weights", "input_channels", "expected_digest", "move")
    CONV2D_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    conv2d: _conv2d_pb2.Conv2D
    name: str
    weights: WeightsHeader
    input_channels: int
    expected_digest: bytes
    move: NameMove
    def __init__(self, conv2d: _Optional[_Union[_conv2d_pb2.Conv2D, _Mapping]] = ..., name: _Optional[str] = ..., weights: _Optional[_Union[WeightsHeader, _Mapping]] = ..., input_channels: _Optional[int] = ..., expected_digest: _Optional[bytes] = ..., move: _Optional[_Union[NameMove, _Mapping]] = ...) -> None: ...

class PutLayerResponse(_message.Message):
    __slots__ = ("layer", "existed", "version")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    layer: _layer_pb2.StoredLayer
    existed: bool
    version: int
    def __init__(self, layer: _Optional[_Union[_layer_pb2.StoredLayer, _Mapping]] = ..., existed: bool = ..., version: _Optional[int] = ...) -> None: ...

class GetLayerRequest(_message.Message):
    __slots__ = ("layer",)
    LAYER_FIELD_NUMBER: _ClassVar[int]
    layer: StoredLayerReference
    def __init__(self, layer: _Optional[_Union[StoredLayerReference, _Mapping]] = ...) -> None: ...

class GetLayerResponse(_message.Message):
    __slots__ = ("layer",)
    LAYER_FIELD_NUMBER: _ClassVar[int]
    layer: _layer_pb2.StoredLayer
    def __init__(self, layer: _Optional[_Union[_layer_pb2.StoredLayer, _Mapping]] = ...) -> None: ...

class ListLayersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "name_prefix")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    name_prefix: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., name_prefix: _Optional[str] = ...) -> None: ...

class ListLayersResponse(_message.Message):
    __slots__ = ("layers", "next_page_token")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[_layer_pb2.StoredLayer]
    next_page_token: str
    def __init__(self, layers: _Optional[_Iterable[_Union[_layer_pb2.StoredLayer, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FindMissingLayersRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FindMissingLayersResponse(_message.Message):
    __slots__ = ("missing_digests",)
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    missing_digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, missing_digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DeleteLayerRequest(_message.Message):
    __slots__ = ("layer",)
    LAYER_FIELD_NUMBER: _ClassVar[int]
    layer: StoredLayerReference
    def __init__(self, layer: _Optional[_Union[StoredLayerReference, _Mapping]] = ...) -> None: ...

class DeleteLayerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UpdateWeightsRequest(_message.Message):
    __slots__ = ("start", "piece")
    START_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    start: UpdateWeightsStart
    piece: bytes
    def __init__(self, start: _Optional[_Union[UpdateWeightsStart, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class UpdateWeightsStart(_message.Message):
    __slots__ = ("layer", "weights", "name", "move")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    layer: StoredLayerReference
    weights: WeightsHeader
    name: str
    move: NameMove
    def __init__(self, layer: _Optional[_Union[StoredLayerReference, _Mapping]] = ..., weights: _Optional[_Union[WeightsHeader, _Mapping]] = ..., name: _Optional[str] = ..., move: _Optional[_Union[NameMove, _Mapping]] = ...) -> None: ...

class UpdateWeightsResponse(_message.Message):
    __slots__ = ("layer", "losses", "version")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    layer: _layer_pb2.StoredLayer
    losses: _layer_pb2.Losses
    version: int
    def __init__(self, layer: _Optional[_Union[_layer_pb2.StoredLayer, _Mapping]] = ..., losses: _Optional[_Union[_layer_pb2.Losses, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class ReadWeightsRequest(_message.Message):
    __slots__ = ("layer",)
    LAYER_FIELD_NUMBER: _ClassVar[int]
    layer: StoredLayerReference
    def __init__(self, layer: _Optional[_Union[StoredLayerReference, _Mapping]] = ...) -> None: ...

class ReadWeightsResponse(_message.Message):
    __slots__ = ("start", "piece")
    START_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    start: WeightsHeader
    piece: bytes
    def __init__(self, start: _Optional[_Union[WeightsHeader, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class ListNameVersionsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListNameVersionsResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[NameVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[NameVersion, _Mapping]]] = ...) -> None: ...

class NameVersion(_message.Message):
    __slots__ = ("version", "digest", "moved_us", "stored")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MOVED_US_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: bytes
    moved_us: int
    stored: bool
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[bytes] = ..., moved_us: _Optional[int] = ..., stored: bool = ...) -> None: ...

class MoveNameRequest(_message.Message):
    __slots__ = ("move", "layer", "version", "away")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    move: NameMove
    layer: StoredLayerReference
    version: int
    away: bool
    def __init__(self, move: _Optional[_Union[NameMove, _Mapping]] = ..., layer: _Optional[_Union[StoredLayerReference, _Mapping]] = ..., version: _Optional[int] = ..., away: bool = ...) -> None: ...

class MoveNameResponse(_message.Message):
    __slots__ = ("layer", "version")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    layer: _layer_pb2.StoredLayer
    version: int
    def __init__(self, layer: _Optional[_Union[_layer_pb2.StoredLayer, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...
