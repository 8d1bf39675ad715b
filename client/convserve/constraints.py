"""Keras' constraints as values. They act when weights are updated, never in a forward pass."""

from __future__ import annotations

from convserve._keras_object import KerasObject, axes, number
from convserve.v1 import constraint_pb2


class Constraint(KerasObject):
    """One of `keras.constraints`."""

    family = "constraint"
    message = constraint_pb2.Constraint


class MaxNorm(Constraint):
    """Scales weights down to a norm of at most `max_value`, taken over `axis`."""

    max_value: float = number(2.0)
    axis: tuple[int, ...] = axes((0,))


class MinMaxNorm(Constraint):
    """Moves the norm, taken over `axis`, into [min_value, max_value] by the share `rate`."""

    min_value: float = number(0.0)
    max_value: float = number(1.0)
    rate: float = number(1.0)
    axis: tuple[int, ...] = axes((0,))


class NonNeg(Constraint):
    """Replaces negative weights by 0."""


class UnitNorm(Constraint):
    """Scales weights to norm 1, taken over `axis`."""

    axis: tuple[int, ...] = axes((0,))
