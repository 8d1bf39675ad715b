from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Activation(_message.Message):
    __slots__ = ("linear", "relu", "leaky_relu", "relu6", "softmax", "log_softmax", "sparsemax", "glu", "celu", "elu", "selu", "softplus", "softsign", "squareplus", "soft_shrink", "hard_shrink", "sparse_plus", "silu", "gelu", "tanh", "tanh_shrink", "hard_tanh", "threshold", "sigmoid", "sparse_sigmoid", "exponential", "hard_sigmoid", "hard_silu", "mish", "log_sigmoid")
    LINEAR_FIELD_NUMBER: _ClassVar[int]
    RELU_FIELD_NUMBER: _ClassVar[int]
    LEAKY_RELU_FIELD_NUMBER: _ClassVar[int]
    RELU6_FIELD_NUMBER: _ClassVar[int]
    SOFTMAX_FIELD_NUMBER: _ClassVar[int]
    LOG_SOFTMAX_FIELD_NUMBER: _ClassVar[int]
    SPARSEMAX_FIELD_NUMBER: _ClassVar[int]
    GLU_FIELD_NUMBER: _ClassVar[int]
    CELU_FIELD_NUMBER: _ClassVar[int]
    ELU_FIELD_NUMBER: _ClassVar[int]
    SELU_FIELD_NUMBER: _ClassVar[int]
    SOFTPLUS_FIELD_NUMBER: _ClassVar[int]
    SOFTSIGN_FIELD_NUMBER: _ClassVar[int]
    SQUAREPLUS_FIELD_NUMBER: _ClassVar[int]
    SOFT_SHRINK_FIELD_NUMBER: _ClassVar[int]
    HARD_SHRINK_FIELD_NUMBER: _ClassVar[int]
    SPARSE_PLUS_FIELD_NUMBER: _ClassVar[int]
    SILU_FIELD_NUMBER: _ClassVar[int]
    GELU_FIELD_NUMBER: _ClassVar[int]
    TANH_FIELD_NUMBER: _ClassVar[int]
    TANH_SHRINK_FIELD_NUMBER: _ClassVar[int]
    HARD_TANH_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SIGMOID_FIELD_NUMBER: _ClassVar[int]
    SPARSE_SIGMOID_FIELD_NUMBER: _ClassVar[int]
    EXPONENTIAL_FIELD_NUMBER: _ClassVar[int]
    HARD_SIGMOID_FIELD_NUMBER: _ClassVar[int]
    HARD_SILU_FIELD_NUMBER: _ClassVar[int]
    MISH_FIELD_NUMBER: _ClassVar[int]
    LOG_SIGMOID_FIELD_NUMBER: _ClassVar[int]
    linear: NoParameters
    relu: ReluActivation
    leaky_relu: LeakyReluActivation
    relu6: NoParameters
    softmax: AxisActivation
    log_softmax: AxisActivation
    sparsemax: AxisActivation
    glu: AxisActivation
    celu: AlphaActivation
    elu: AlphaActivation
    selu: NoParameters
    softplus: NoParameters
    softsign: NoParameters
    squareplus: SquareplusActivation
    soft_shrink: ShrinkActivation
    hard_shrink: ShrinkActivation
    sparse_plus: NoParameters
    silu: NoParameters
    gelu: GeluActivation
    tanh: NoParameters
    tanh_shrink: NoParameters
    hard_tanh: NoParameters
    threshold: ThresholdActivation
    sigmoid: NoParameters
    sparse_sigmoid: NoParameters
    exponential: NoParameters
    hard_sigmoid: NoParameters
    hard_silu: NoParameters
    mish: NoParameters
    log_sigmoid: NoParameters
    def __init__(self, linear: _Optional[_Union[NoParameters, _Mapping]] = ..., relu: _Optional[_Union[ReluActivation, _Mapping]] = ..., leaky_relu: _Optional[_Union[LeakyReluActivation, _Mapping]] = ..., relu6: _Optional[_Union[NoParameters, _Mapping]] = ..., softmax: _Optional[_Union[AxisActivation, _Mapping]] = ..., log_softmax: _Optional[_Union[AxisActivation, _Mapping]] = ..., sparsemax: _Optional[_Union[AxisActivation, _Mapping]] = ..., glu: _Optional[_Union[AxisActivation, _Mapping]] = ..., celu: _Optional[_Union[AlphaActivation, _Mapping]] = ..., elu: _Optional[_Union[AlphaActivation, _Mapping]] = ..., selu: _Optional[_Union[NoParameters, _Mapping]] = ..., softplus: _Optional[_Union[NoParameters, _Mapping]] = ..., softsign: _Optional[_Union[NoParameters, _Mapping]] = ..., squareplus: _Optional[_Union[SquareplusActivation, _Mapping]] = ..., soft_shrink: _Optional[_Union[ShrinkActivation, _Mapping]] = ..., hard_shrink: _Optional[_Union[ShrinkActivation, _Mapping]] = ..., sparse_plus: _Optional[_Union[NoParameters, _Mapping]] = ..., silu: _Optional[_Union[NoParameters, _Mapping]] = ..., gelu: _Optional[_Union[GeluActivation, _Mapping]] = ..., tanh: _Optional[_Union[NoParameters, _Mapping]] = ..., tanh_shrink: _Optional[_Union[NoParameters, _Mapping]] = ..., hard_tanh: _Optional[_Union[NoParameters, _Mapping]] = ..., threshold: _Optional[_Union[ThresholdActivation, _Mapping]] = ..., sigmoid: _Optional[_Union[NoParameters, _Mapping]] = ..., sparse_sigmoid: _Optional[_Union[NoParameters, _Mapping]] = ..., exponential: _Optional[_Union[NoParameters, _Mapping]] = ..., hard_sigmoid: _Optional[_Union[NoParameters, _Mapping]] = ..., hard_silu: _Optional[_Union[NoParameters, _Mapping]] = ..., mish: _Optional[_Union[NoParameters, _Mapping]] = ..., log_sigmoid: _Optional[_Union[NoParameters, _Mapping]] = ...) -> None: ...

class NoParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReluActivation(_message.Message):
    __slots__ = ("negative_slope", "max_value", "threshold")
    NEGATIVE_SLOPE_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    negative_slope: float
    max_value: float
    threshold: float
    def __init__(self, negative_slope: _Optional[float] = ..., max_value: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class LeakyReluActivation(_message.Message):
    __slots__ = ("negative_slope",)
    NEGATIVE_SLOPE_FIELD_NUMBER: _ClassVar[int]
    negative_slope: float
    def __init__(self, negative_slope: _Optional[float] = ...) -> None: ...

class AxisActivation(_message.Message):
    __slots__ = ("axis",)
    AXIS_FIELD_NUMBER: _ClassVar[int]
    axis: int
    def __init__(self, axis: _Optional[int] = ...) -> None: ...

class AlphaActivation(_message.Message):
    __slots__ = ("alpha",)
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    def __init__(self, alpha: _Optional[float] = ...) -> None: ...

class SquareplusActivation(_message.Message):
    __slots__ = ("b",)
    B_FIELD_NUMBER: _ClassVar[int]
    b: float
    def __init__(self, b: _Optional[float] = ...) -> None: ...

class ShrinkActivation(_message.Message):
    __slots__ = ("threshold",)
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    def __init__(self, threshold: _Optional[float] = ...) -> None: ...

class GeluActivation(_message.Message):
    __slots__ = ("approximate",)
    APPROXIMATE_FIELD_NUMBER: _ClassVar[int]
    approximate: bool
    def __init__(self, approximate: bool = ...) -> None: ...

class ThresholdActivation(_message.Message):
    __slots__ = ("threshold", "default_value")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    default_value: float
    def __init__(self, threshold: _Optional[float] = ..., default_value: _Optional[float] = ...) -> None: ...
