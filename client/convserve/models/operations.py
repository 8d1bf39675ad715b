"""What stands beside convolutions in a model and can become part of one: values, read from nobody's code."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from convserve.activations import Activation
from convserve.errors import InvalidConfigurationError
from convserve.layers.arguments import Pair
from convserve.layers.keras_layers import CONVOLUTIONS, kernels
from convserve.tensors.codec import Array

PASS_THROUGH = frozenset({
    "Identity", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout",
    "ActivityRegularization",
})  # fmt: skip
"""Layers of Keras' that return their input in inference."""

ACTIVATIONS = frozenset({"Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "ThresholdedReLU"})
PADDINGS = frozenset({"ZeroPadding1D", "ZeroPadding2D"})
LINEAR = cast(Activation, Activation.members["linear"]())


@dataclass(frozen=True, eq=False)
class BatchNormalization:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, each of them one number a channel."""

    gamma: Array | None  # of the shape (channels,), as all are; None for 1
    beta: Array | None  # None for 0
    mean: Array
    variance: Array
    epsilon: float  # at least 0
    axis: int | None = None  # of the input, as Keras counts the channels'; None for that of the convolution before it


@dataclass(frozen=True)
class ZeroPadding:
    """Rows and columns of zeros around an input."""

    padding: tuple[Pair, Pair]  # ((top, bottom), (left, right)), each at least 0
    data_format: str | None = None  # None if it is known to be that of the convolution after it


def activation_of(kind: str, config: Mapping[str, Any]) -> Activation | None:
    """Returns the activation that a layer of Keras computes, by its class and configuration, of Keras 2 or 3.

    None is for any other layer, an activation of the user's own, parameters that have no counterpart, and an axis of
    the batch.
    """
    if kind not in ACTIVATIONS:
        return LINEAR if kind in PASS_THROUGH else None
    try:
        return Activation.get(identifier(kind, config), "activation") or LINEAR
    except InvalidConfigurationError:
        return None


def identifier(kind: str, config: Mapping[str, Any]) -> Any:
    """Returns what `Activation.get` takes for an activation layer; another may have one as its function."""
    if kind == "Activation":
        given = config.get("activation")
        if not isinstance(given, Mapping) or not isinstance(given.get("config"), Mapping):
            return given
        named = str(given.get("class_name"))
        return identifier(named, given["config"]) if named in ACTIVATIONS else given
    if kind == "ThresholdedReLU":  # of Keras 2
        return {"class_name": "threshold", "config": {"threshold": config.get("theta", 1.0), "default_value": 0.0}}
    names = {
        "ReLU": ("max_value", "negative_slope", "threshold"),
        "LeakyReLU": ("negative_slope",),
        "ELU": ("alpha",),
        "Softmax": ("axis",),
    }[kind]
    kept = {name: config[name] for name in names if name in config}
    if kind == "LeakyReLU":
        # Keras 2 calls the slope alpha, and the layer's default is 0.3 where the function's is 0.2.
        kept.setdefault("negative_slope", config.get("alpha", 0.3))
    return {"class_name": kind, "config": kept}


def weight_names(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the weights of a convolution or a BatchNormalization, in Keras' order."""
    if kind in CONVOLUTIONS:
        own = kernels(kind)
        names = ("kernel",) if len(own) == 1 else tuple(f"{kernel}_kernel" for kernel in own)
        return (*names, "bias") if config.get("use_bias", True) else names
    given = (name for name, flag in (("gamma", "scale"), ("beta", "center")) if config.get(flag, True))
    return (*given, "moving_mean", "moving_variance")


def zero_padding_of(kind: str, config: Mapping[str, Any]) -> ZeroPadding | None:
    """Returns what a ZeroPadding2D or ZeroPadding1D pads, or None for any other layer, or for amounts it cannot have.

    That of rank 1 pads the width, beside a height of 1.
    """
    if kind not in PADDINGS:
        return None
    given = config.get("padding", 1)
    try:
        if kind == "ZeroPadding1D":
            directions = [(0, 0), _both(given)]
        else:
            directions = [_both(side) for side in ((given, given) if isinstance(given, int) else given)]
        (top, bottom), (left, right) = directions
    except (TypeError, ValueError):
        return None
    if min(top, bottom, left, right) < 0:
        return None
    # In Keras 2 that of rank 1 has none, and pads the second axis.
    data_format = config.get("data_format", "channels_last" if kind == "ZeroPadding1D" else None)
    return ZeroPadding(((top, bottom), (left, right)), data_format if isinstance(data_format, str) else None)


def _both(amounts: Any) -> Pair:
    """Returns how many zeros are before and after, from one number for both or from two."""
    before, after = (amounts, amounts) if isinstance(amounts, int) else amounts
    return operator.index(before), operator.index(after)
