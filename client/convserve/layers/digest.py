"""A layer's identity: SHA-256 over the canonical form that proto/convserve/v1/layer.proto writes out at StoredLayer."""

from __future__ import annotations

import hashlib
import struct

from convserve._keras_object import KerasObject
from convserve.layers.conv2d import Conv2D
from convserve.tensors.codec import Array

# Names, input_shape and initializers are no part of what a layer computes; the contract says why `trainable` is.
_FIELDS = (
    "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups", "activation", "use_bias",
    "kernel_regularizer", "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint", "dtype",
    "trainable",
)  # fmt: skip


def digest(config: Conv2D, kernel: Array, bias: Array | None) -> bytes:
    """Returns the 32 bytes that identify a layer on every server.

    The weights are in the policy's weight dtype, C-contiguous and little-endian, as a Layer holds them.
    """
    hashed = hashlib.sha256(canonical_text(config, kernel, bias).encode("ascii"))
    for weight in (kernel, bias):
        if weight is not None:
            hashed.update(weight.reshape(-1).view("u1").data)
    return hashed.digest()


def compute_alike(one: Conv2D, other: Conv2D) -> bool:
    """Returns whether two configurations have the same digest with the same weights."""
    return all(getattr(one, field) == getattr(other, field) for field in _FIELDS)


def canonical_text(config: Conv2D, kernel: Array, bias: Array | None) -> str:
    """Returns the part of the canonical form that comes before the elements."""
    lines = ["convserve.v1.layer", *(f"{field}={_text(getattr(config, field))}" for field in _FIELDS)]
    for name, weight in (("kernel", kernel), ("bias", bias)):
        shape = "none" if weight is None else f"{weight.dtype.name}[{','.join(map(str, weight.shape))}]"
        lines.append(f"{name}={shape}")
    return "".join(f"{line}\n" for line in lines)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, KerasObject):
        parameters = (f"{name}={_text(parameter)}" for name, parameter in sorted(value.parameters.items()))
        return f"{value.keras_name}({';'.join(parameters)})"
    if isinstance(value, tuple):
        if isinstance(value[0], tuple):  # ((top, bottom), (left, right))
            return f"explicit={','.join(_text(amount) for side in value for amount in side)}"
        return ",".join(map(_text, value))
    return str(value)
