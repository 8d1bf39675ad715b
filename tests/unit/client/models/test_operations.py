"""Keras' layers that can become part of a convolution, from their configurations."""

from __future__ import annotations

from typing import Any

import pytest

from convserve import activations
from convserve.activations import Activation
from convserve.models.operations import LINEAR, ZeroPadding, activation_of, zero_padding_of


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("Activation", {"activation": "relu"}, activations.ReLU()),
        ("Activation", {"activation": "swish"}, Activation.members["silu"]()),
        ("Activation", {"activation": "linear"}, LINEAR),
        ("Activation", {"activation": {"class_name": "LeakyReLU", "config": {"alpha": 0.2}}}, activations.LeakyReLU()),
        ("ReLU", {"max_value": 6.0, "negative_slope": 0.0, "threshold": 0, "name": "r", "dtype": "float32"},
         activations.ReLU(max_value=6.0)),
        ("ReLU", {"max_value": None}, activations.ReLU()),
        ("LeakyReLU", {}, activations.LeakyReLU(0.3)),
        ("LeakyReLU", {"alpha": 0.1}, activations.LeakyReLU(0.1)),
        ("LeakyReLU", {"negative_slope": 0.1}, activations.LeakyReLU(0.1)),
        ("ELU", {"alpha": 2.0}, activations.ELU(2.0)),
        ("Softmax", {"axis": -1}, activations.Softmax()),
        ("Softmax", {"axis": 1}, activations.Softmax(1)),
        ("ThresholdedReLU", {"theta": 0.5}, activations.Threshold(0.5, 0.0)),
        ("Dropout", {"rate": 0.5}, LINEAR),
        ("Identity", {}, LINEAR),
    ],
)  # fmt: skip
def test_activations(kind: str, config: dict[str, Any], expected: Activation) -> None:
    assert activation_of(kind, config) == expected


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("PReLU", {}),
        ("Dense", {"activation": "relu"}),
        ("Activation", {"activation": {"class_name": "function", "config": "mine"}}),
        ("Activation", {"activation": {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}}),
        ("Activation", {"activation": {"class_name": ["ReLU"], "config": {}}}),
        ("Activation", {"activation": {"class_name": "Activation", "config": None}}),
        ("Softmax", {"axis": 0}),
        ("Softmax", {"axis": [1, 2]}),
        ("ReLU", {"max_value": "6"}),
        ("ReLU", {"max_value": float("nan")}),
        ("ELU", {"alpha": [1]}),
    ],
)
def test_what_has_no_counterpart_is_none(kind: str, config: dict[str, Any]) -> None:
    assert activation_of(kind, config) is None


def test_activations_inside_each_other_come_to_an_end() -> None:
    nested: Any = "relu"
    for _ in range(20):
        nested = {"class_name": "Activation", "config": {"activation": nested}}
    assert activation_of("Activation", {"activation": nested}) == activations.ReLU()


@pytest.mark.parametrize(
    ("kind", "padding", "expected"),
    [
        ("ZeroPadding2D", 1, ((1, 1), (1, 1))),
        ("ZeroPadding2D", [1, 2], ((1, 1), (2, 2))),
        ("ZeroPadding2D", [[0, 1], [2, 3]], ((0, 1), (2, 3))),
        ("ZeroPadding2D", [[0, 0], 3], ((0, 0), (3, 3))),
        ("ZeroPadding1D", 2, ((0, 0), (2, 2))),
        ("ZeroPadding1D", [1, 2], ((0, 0), (1, 2))),
        ("ZeroPadding2D", [-1, 0], None),
        ("ZeroPadding2D", [[1], [1]], None),
        ("ZeroPadding2D", [1, 2, 3], None),
        ("ZeroPadding2D", "11", None),
        ("ZeroPadding2D", None, None),
        ("ZeroPadding2D", [[0.5, 1], [1, 1]], None),
        ("ZeroPadding1D", [[1, 1]], None),
        ("ZeroPadding3D", 1, None),
        ("Cropping2D", 1, None),
    ],
)
def test_paddings(kind: str, padding: Any, expected: Any) -> None:
    found = zero_padding_of(kind, {"padding": padding, "data_format": "channels_first"})
    assert found == (None if expected is None else ZeroPadding(expected, "channels_first"))


def test_where_the_data_format_is_not_said() -> None:
    assert zero_padding_of("ZeroPadding2D", {}) == ZeroPadding(((1, 1), (1, 1)), None)
    assert zero_padding_of("ZeroPadding1D", {}) == ZeroPadding(((0, 0), (1, 1)), "channels_last")  # as in Keras 2
