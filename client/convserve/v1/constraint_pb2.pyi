from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Constraint(_message.Message):
    __slots__ = ("max_norm", "min_max_norm", "non_neg", "unit_norm")
    MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    MIN_MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    NON_NEG_FIELD_NUMBER: _ClassVar[int]
    UNIT_NORM_FIELD_NUMBER: _ClassVar[int]
    max_norm: MaxNormConstraint
    min_max_norm: MinMaxNormConstraint
    non_neg: NonNegConstraint
    unit_norm: UnitNormConstraint
    def __init__(self, max_norm: _Optional[_Union[MaxNormConstraint, _Mapping]] = ..., min_max_norm: _Optional[_Union[MinMaxNormConstraint, _Mapping]] = ..., non_neg: _Optional[_Union[NonNegConstraint, _Mapping]] = ..., unit_norm: _Optional[_Union[UnitNormConstraint, _Mapping]] = ...) -> None: ...

class MaxNormConstraint(_message.Message):
    __slots__ = ("max_value", "axis")
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    max_value: float
    axis: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, max_value: _Optional[float] = ..., axis: _Optional[_Iterable[int]] = ...) -> None: ...

class MinMaxNormConstraint(_message.Message):
    __slots__ = ("min_value", "max_value", "rate", "axis")
    MIN_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    min_value: float
    max_value: float
    rate: float
    axis: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, min_value: _Optional[float] = ..., max_value: _Optional[float] = ..., rate: _Optional[float] = ..., axis: _Optional[_Iterable[int]] = ...) -> None: ...

class NonNegConstraint(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnitNormConstraint(_message.Message):
    __slots__ = ("axis",)
    AXIS_FIELD_NUMBER: _ClassVar[int]
    axis: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, axis: _Optional[_Iterable[int]] = ...) -> None: ...
