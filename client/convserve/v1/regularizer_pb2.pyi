from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Regularizer(_message.Message):
    __slots__ = ("l1", "l2", "l1l2", "orthogonal_regularizer")
    L1_FIELD_NUMBER: _ClassVar[int]
    L2_FIELD_NUMBER: _ClassVar[int]
    L1L2_FIELD_NUMBER: _ClassVar[int]
    ORTHOGONAL_REGULARIZER_FIELD_NUMBER: _ClassVar[int]
    l1: L1Regularizer
    l2: L2Regularizer
    l1l2: L1L2Regularizer
    orthogonal_regularizer: OrthogonalRegularizer
    def __init__(self, l1: _Optional[_Union[L1Regularizer, _Mapping]] = ..., l2: _Optional[_Union[L2Regularizer, _Mapping]] = ..., l1l2: _Optional[_Union[L1L2Regularizer, _Mapping]] = ..., orthogonal_regularizer: _Optional[_Union[OrthogonalRegularizer, _Mapping]] = ...) -> None: ...

class L1Regularizer(_message.Message):
    __slots__ = ("l1",)
    L1_FIELD_NUMBER: _ClassVar[int]
    l1: float
    def __init__(self, l1: _Optional[float] = ...) -> None: ...

class L2Regularizer(_message.Message):
    __slots__ = ("l2",)
    L2_FIELD_NUMBER: _ClassVar[int]
    l2: float
    def __init__(self, l2: _Optional[float] = ...) -> None: ...

class L1L2Regularizer(_message.Message):
    __slots__ = ("l1", "l2")
    L1_FIELD_NUMBER: _ClassVar[int]
    L2_FIELD_NUMBER: _ClassVar[int]
    l1: float
    l2: float
    def __init__(self, l1: _Optional[float] = ..., l2: _Optional[float] = ...) -> None: ...

class OrthogonalRegularizer(_message.Message):
    __slots__ = ("factor", "mode")
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    factor: float
    mode: str
    def __init__(self, factor: _Optional[float] = ..., mode: _Optional[str] = ...) -> None: ...
