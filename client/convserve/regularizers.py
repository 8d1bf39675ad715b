"""Keras' regularizers as values: penalties that a server computes and returns."""

from __future__ import annotations

from convserve._keras_object import KerasObject, number, word
from convserve.v1 import regularizer_pb2


class Regularizer(KerasObject):
    """One of `keras.regularizers`."""

    family = "regularizer"
    message = regularizer_pb2.Regularizer


class L1(Regularizer):
    """l1 * sum(abs(x))."""

    l1: float = number(0.01, at_least=0)


class L2(Regularizer):
    """l2 * sum(square(x))."""

    l2: float = number(0.01, at_least=0)


class L1L2(Regularizer):
    """l1 * sum(abs(x)) + l2 * sum(square(x))."""

    l1: float = number(0.0, at_least=0)
    l2: float = number(0.0, at_least=0)


class OrthogonalRegularizer(Regularizer):
    """A penalty on rows or columns that are not orthogonal.

    Keras has it for rank 2 only. So an activity_regularizer cannot be one, and that of a kernel or a bias has no loss.
    """

    refusal = "orthogonal_regularizer needs a tensor of rank 2; a Conv2D has none"
    factor: float = number(0.01, at_least=0)
    mode: str = word("rows", "rows", "columns")
