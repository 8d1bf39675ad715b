"""Keras' initializers as values: how a server draws weights that are not given."""

from __future__ import annotations

import dataclasses

from convserve._keras_object import KerasObject, axes, flag, number, seed, word
from convserve.v1 import initializer_pb2


class Initializer(KerasObject):
    """One of `keras.initializers`."""

    family = "initializer"
    message = initializer_pb2.Initializer

    def with_seed(self, value: int) -> Initializer:
        """Returns the same initializer with this seed if it is random and has none of its own."""
        if "seed" in self.parameters and self.parameters["seed"] is None:
            return dataclasses.replace(self, seed=value)  # type: ignore[call-arg]
        return self


class Zeros(Initializer):
    """All 0."""

    aliases = ("zero",)


class Ones(Initializer):
    """All 1."""

    aliases = ("one",)


class Constant(Initializer):
    """All one value."""

    value: float = number(0.0)


class RandomNormal(Initializer):
    """Normal distribution."""

    aliases = ("normal",)
    mean: float = number(0.0)
    stddev: float = number(0.05, at_least=0)
    seed: int | None = seed()


class RandomUniform(Initializer):
    """Uniform distribution over [minval, maxval)."""

    aliases = ("uniform",)
    minval: float = number(-0.05)
    maxval: float = number(0.05)
    seed: int | None = seed()


class TruncatedNormal(Initializer):
    """Normal distribution, values beyond two standard deviations drawn again."""

    mean: float = number(0.0)
    stddev: float = number(0.05, at_least=0)
    seed: int | None = seed()


class VarianceScaling(Initializer):
    """Scaled to the number of inputs ("fan_in"), outputs ("fan_out") or their mean ("fan_avg")."""

    scale: float = number(1.0, above=0)
    mode: str = word("fan_in", "fan_in", "fan_out", "fan_avg")
    distribution: str = word("truncated_normal", "truncated_normal", "untruncated_normal", "uniform", "normal")
    seed: int | None = seed()
    input_axes: tuple[int, ...] | None = axes(None)
    output_axes: tuple[int, ...] | None = axes(None)


class _FanInitializer(Initializer):
    """A VarianceScaling with scale, mode and distribution fixed."""

    seed: int | None = seed()
    input_axes: tuple[int, ...] | None = axes(None)
    output_axes: tuple[int, ...] | None = axes(None)


class GlorotNormal(_FanInitializer):
    """VarianceScaling(1, "fan_avg", "truncated_normal")."""


class GlorotUniform(_FanInitializer):
    """VarianceScaling(1, "fan_avg", "uniform"): Keras' default for a kernel."""


class HeNormal(_FanInitializer):
    """VarianceScaling(2, "fan_in", "truncated_normal")."""


class HeUniform(_FanInitializer):
    """VarianceScaling(2, "fan_in", "uniform")."""


class LecunNormal(_FanInitializer):
    """VarianceScaling(1, "fan_in", "truncated_normal")."""


class LecunUniform(_FanInitializer):
    """VarianceScaling(1, "fan_in", "uniform")."""


class Orthogonal(Initializer):
    """An orthogonal matrix of shape (product of the first axes, last axis), for kernels only."""

    aliases = ("OrthogonalInitializer",)
    gain: float = number(1.0)
    seed: int | None = seed()


class Identity(Initializer):
    """The identity matrix. Keras has it for 2-D weights only, so no Conv2D can use it."""

    aliases = ("IdentityInitializer",)
    refusal = "identity makes 2-D matrices; a Conv2D's kernel has rank 4 and its bias rank 1"
    gain: float = number(1.0)


class STFT(Initializer):
    """Short-term Fourier transformation kernels. Keras has them for 3-D weights only, so no Conv2D can use them."""

    aliases = ("STFTInitializer",)
    refusal = "stft makes kernels of rank 3; a Conv2D's kernel has rank 4 and its bias rank 1"
    side: str = word("real", "real", "imag")
    window: str = word("hann")
    scaling: str = word("density", "density", "spectrum")
    periodic: bool = flag(False)
