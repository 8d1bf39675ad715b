from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Initializer(_message.Message):
    __slots__ = ("zeros", "ones", "constant", "random_normal", "random_uniform", "truncated_normal", "variance_scaling", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform", "orthogonal", "identity", "stft")
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    ONES_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    RANDOM_NORMAL_FIELD_NUMBER: _ClassVar[int]
    RANDOM_UNIFORM_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_NORMAL_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_SCALING_FIELD_NUMBER: _ClassVar[int]
    GLOROT_NORMAL_FIELD_NUMBER: _ClassVar[int]
    GLOROT_UNIFORM_FIELD_NUMBER: _ClassVar[int]
    HE_NORMAL_FIELD_NUMBER: _ClassVar[int]
    HE_UNIFORM_FIELD_NUMBER: _ClassVar[int]
    LECUN_NORMAL_FIELD_NUMBER: _ClassVar[int]
    LECUN_UNIFORM_FIELD_NUMBER: _ClassVar[int]
    ORTHOGONAL_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    STFT_FIELD_NUMBER: _ClassVar[int]
    zeros: ZerosInitializer
    ones: OnesInitializer
    constant: ConstantInitializer
    random_normal: NormalInitializer
    random_uniform: UniformInitializer
    truncated_normal: NormalInitializer
    variance_scaling: VarianceScalingInitializer
    glorot_normal: FanInitializer
    glorot_uniform: FanInitializer
    he_normal: FanInitializer
    he_uniform: FanInitializer
    lecun_normal: FanInitializer
    lecun_uniform: FanInitializer
    orthogonal: OrthogonalInitializer
    identity: IdentityInitializer
    stft: STFTInitializer
    def __init__(self, zeros: _Optional[_Union[ZerosInitializer, _Mapping]] = ..., ones: _Optional[_Union[OnesInitializer, _Mapping]] = ..., constant: _Optional[_Union[ConstantInitializer, _Mapping]] = ..., random_normal: _Optional[_Union[NormalInitializer, _Mapping]] = ..., random_uniform: _Optional[_Union[UniformInitializer, _Mapping]] = ..., truncated_normal: _Optional[_Union[NormalInitializer, _Mapping]] = ..., variance_scaling: _Optional[_Union[VarianceScalingInitializer, _Mapping]] = ..., glorot_normal: _Optional[_Union[FanInitializer, _Mapping]] = ..., glorot_uniform: _Optional[_Union[FanInitializer, _Mapping]] = ..., he_normal: _Optional[_Union[FanInitializer, _Mapping]] = ..., he_uniform: _Optional[_Union[FanInitializer, _Mapping]] = ..., lecun_normal: _Optional[_Union[FanInitializer, _Mapping]] = ..., lecun_uniform: _Optional[_Union[FanInitializer, _Mapping]] = ..., orthogonal: _Optional[_Union[OrthogonalInitializer, _Mapping]] = ..., identity: _Optional[_Union[IdentityInitializer, _Mapping]] = ..., stft: _Optional[_Union[STFTInitializer, _Mapping]] = ...) -> None: ...

class ZerosInitializer(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OnesInitializer(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConstantInitializer(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: float
    def __init__(self, value: _Optional[float] = ...) -> None: ...

class NormalInitializer(_message.Message):
    __slots__ = ("mean", "stddev", "seed")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STDDEV_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    mean: float
    stddev: float
    seed: int
    def __init__(self, mean: _Optional[float] = ..., stddev: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class UniformInitializer(_message.Message):
    __slots__ = ("minval", "maxval", "seed")
    MINVAL_FIELD_NUMBER: _ClassVar[int]
    MAXVAL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    minval: float
    maxval: float
    seed: int
    def __init__(self, minval: _Optional[float] = ..., maxval: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class VarianceScalingInitializer(_message.Message):
    __slots__ = ("scale", "mode", "distribution", "seed", "input_axes", "output_axes")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    INPUT_AXES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AXES_FIELD_NUMBER: _ClassVar[int]
    scale: float
    mode: str
    distribution: str
    seed: int
    input_axes: Axes
    output_axes: Axes
    def __init__(self, scale: _Optional[float] = ..., mode: _Optional[str] = ..., distribution: _Optional[str] = ..., seed: _Optional[int] = ..., input_axes: _Optional[_Union[Axes, _Mapping]] = ..., output_axes: _Optional[_Union[Axes, _Mapping]] = ...) -> None: ...

class Axes(_message.Message):
    __slots__ = ("axis",)
    AXIS_FIELD_NUMBER: _ClassVar[int]
    axis: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, axis: _Optional[_Iterable[int]] = ...) -> None: ...

class FanInitializer(_message.Message):
    __slots__ = ("seed", "input_axes", "output_axes")
    SEED_FIELD_NUMBER: _ClassVar[int]
    INPUT_AXES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AXES_FIELD_NUMBER: _ClassVar[int]
    seed: int
    input_axes: Axes
    output_axes: Axes
    def __init__(self, seed: _Optional[int] = ..., input_axes: _Optional[_Union[Axes, _Mapping]] = ..., output_axes: _Optional[_Union[Axes, _Mapping]] = ...) -> None: ...

class OrthogonalInitializer(_message.Message):
    __slots__ = ("gain", "seed")
    GAIN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    gain: float
    seed: int
    def __init__(self, gain: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class IdentityInitializer(_message.Message):
    __slots__ = ("gain",)
    GAIN_FIELD_NUMBER: _ClassVar[int]
    gain: float
    def __init__(self, gain: _Optional[float] = ...) -> None: ...

class STFTInitializer(_message.Message):
    __slots__ = ("side", "window", "scaling", "periodic")
    SIDE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    PERIODIC_FIELD_NUMBER: _ClassVar[int]
    side: str
    window: str
    scaling: str
    periodic: bool
    def __init__(self, side: _Optional[str] = ..., window: _Optional[str] = ..., scaling: _Optional[str] = ..., periodic: bool = ...) -> None: ...
