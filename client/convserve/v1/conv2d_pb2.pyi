from convserve.v1 import activation_pb2 as _activation_pb2
from convserve.v1 import constraint_pb2 as _constraint_pb2
from convserve.v1 import initializer_pb2 as _initializer_pb2
from convserve.v1 import regularizer_pb2 as _regularizer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PaddingMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PADDING_MODE_UNSPECIFIED: _ClassVar[PaddingMode]
    PADDING_MODE_VALID: _ClassVar[PaddingMode]
    PADDING_MODE_SAME: _ClassVar[PaddingMode]

class DataFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_FORMAT_UNSPECIFIED: _ClassVar[DataFormat]
    DATA_FORMAT_CHANNELS_LAST: _ClassVar[DataFormat]
    DATA_FORMAT_CHANNELS_FIRST: _ClassVar[DataFormat]

class DtypePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_POLICY_UNSPECIFIED: _ClassVar[DtypePolicy]
    DTYPE_POLICY_FLOAT32: _ClassVar[DtypePolicy]
    DTYPE_POLICY_FLOAT16: _ClassVar[DtypePolicy]
    DTYPE_POLICY_BFLOAT16: _ClassVar[DtypePolicy]
    DTYPE_POLICY_FLOAT64: _ClassVar[DtypePolicy]
    DTYPE_POLICY_MIXED_FLOAT16: _ClassVar[DtypePolicy]
    DTYPE_POLICY_MIXED_BFLOAT16: _ClassVar[DtypePolicy]
PADDING_MODE_UNSPECIFIED: PaddingMode
PADDING_MODE_VALID: PaddingMode
PADDING_MODE_SAME: PaddingMode
DATA_FORMAT_UNSPECIFIED: DataFormat
DATA_FORMAT_CHANNELS_LAST: DataFormat
DATA_FORMAT_CHANNELS_FIRST: DataFormat
DTYPE_POLICY_UNSPECIFIED: DtypePolicy
DTYPE_POLICY_FLOAT32: DtypePolicy
DTYPE_POLICY_FLOAT16: DtypePolicy
DTYPE_POLICY_BFLOAT16: DtypePolicy
DTYPE_POLICY_FLOAT64: DtypePolicy
DTYPE_POLICY_MIXED_FLOAT16: DtypePolicy
DTYPE_POLICY_MIXED_BFLOAT16: DtypePolicy

class Conv2D(_message.Message):
    __slots__ = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups", "activation", "use_bias", "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint", "name", "dtype", "trainable", "input_shape")
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    STRIDES_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    DATA_FORMAT_FIELD_NUMBER: _ClassVar[int]
    DILATION_RATE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    USE_BIAS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    BIAS_INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    KERNEL_REGULARIZER_FIELD_NUMBER: _ClassVar[int]
    BIAS_REGULARIZER_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_REGULARIZER_FIELD_NUMBER: _ClassVar[int]
    KERNEL_CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    BIAS_CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    filters: int
    kernel_size: Size2D
    strides: Size2D
    padding: Padding
    data_format: DataFormat
    dilation_rate: Size2D
    groups: int
    activation: _activation_pb2.Activation
    use_bias: bool
    kernel_initializer: _initializer_pb2.Initializer
    bias_initializer: _initializer_pb2.Initializer
    kernel_regularizer: _regularizer_pb2.Regularizer
    bias_regularizer: _regularizer_pb2.Regularizer
    activity_regularizer: _regularizer_pb2.Regularizer
    kernel_constraint: _constraint_pb2.Constraint
    bias_constraint: _constraint_pb2.Constraint
    name: str
    dtype: DtypePolicy
    trainable: bool
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, filters: _Optional[int] = ..., kernel_size: _Optional[_Union[Size2D, _Mapping]] = ..., strides: _Optional[_Union[Size2D, _Mapping]] = ..., padding: _Optional[_Union[Padding, _Mapping]] = ..., data_format: _Optional[_Union[DataFormat, str]] = ..., dilation_rate: _Optional[_Union[Size2D, _Mapping]] = ..., groups: _Optional[int] = ..., activation: _Optional[_Union[_activation_pb2.Activation, _Mapping]] = ..., use_bias: bool = ..., kernel_initializer: _Optional[_Union[_initializer_pb2.Initializer, _Mapping]] = ..., bias_initializer: _Optional[_Union[_initializer_pb2.Initializer, _Mapping]] = ..., kernel_regularizer: _Optional[_Union[_regularizer_pb2.Regularizer, _Mapping]] = ..., bias_regularizer: _Optional[_Union[_regularizer_pb2.Regularizer, _Mapping]] = ..., activity_regularizer: _Optional[_Union[_regularizer_pb2.Regularizer, _Mapping]] = ..., kernel_constraint: _Optional[_Union[_constraint_pb2.Constraint, _Mapping]] = ..., bias_constraint: _Optional[_Union[_constraint_pb2.Constraint, _Mapping]] = ..., name: _Optional[str] = ..., dtype: _Optional[_Union[DtypePolicy, str]] = ..., trainable: bool = ..., input_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Size2D(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Padding(_message.Message):
    __slots__ = ("mode", "explicit")
    MODE_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_FIELD_NUMBER: _ClassVar[int]
    mode: PaddingMode
    explicit: ExplicitPadding
    def __init__(self, mode: _Optional[_Union[PaddingMode, str]] = ..., explicit: _Optional[_Union[ExplicitPadding, _Mapping]] = ...) -> None: ...

class ExplicitPadding(_message.Message):
    __slots__ = ("top", "bottom", "left", "right")
    TOP_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    top: int
    bottom: int
    left: int
    right: int
    def __init__(self, top: _Optional[int] = ..., bottom: _Optional[int] = ..., left: _Optional[int] = ..., right: _Optional[int] = ...) -> None: ...
