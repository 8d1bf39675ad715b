"""One layer in one file: safetensors, whose header has the configuration and a checksum of it.

The digest is in the file's name; names and initializers, which are no part of it, are in the checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
from typing import BinaryIO, NamedTuple

from safetensors.numpy import save

from convserve.errors import ConvserveError
from convserve.files.layers import configuration_in, metadata_of
from convserve.files.safetensors import DTYPES
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.weight_shapes import check_weight_shapes
from convserve.tensors.aligned import aligned_empty
from convserve.tensors.codec import Array, Shape, itemsize, numpy_dtype
from convserve_server.layer_store.stored_layer import LayerHead

DAMAGE = (
    ConvserveError, ValueError, KeyError, TypeError, AttributeError, RecursionError, PermissionError, IsADirectoryError,
)  # fmt: skip
"""What reading a file of somebody else's raises, or one that may not be read; deep nesting is a RecursionError."""

_MAX_HEADER = 2**20


class _Header(NamedTuple):
    """A file's header: the configuration, and for each weight its shape and where it begins in the file."""

    config: Conv2D
    shapes: dict[str, Shape]
    offsets: dict[str, int]


def encode(layer: Layer) -> bytes:
    """Returns the contents of a layer's file."""
    metadata = metadata_of(layer.config)
    data: bytes = save(layer.arrays, metadata | {"checksum": _checksum(metadata["conv2d"])})
    return data


def read_head(file: BinaryIO, size: int | None = None) -> LayerHead:
    """Returns what a file's header says of its layer, of which the weights may be others; or raises a DAMAGE.

    Where only the file's beginning is at hand, its size is given.
    """
    header = _read_header(file, size)
    return LayerHead(header.config, header.shapes["kernel"])


def read_layer(file: BinaryIO, key: bytes) -> Layer:
    """Returns the layer with this digest, its weights in aligned, read-only memory; or raises a DAMAGE."""
    header = _read_header(file)
    weights: dict[str, Array] = {}
    for name, shape in header.shapes.items():
        weight = aligned_empty(shape, numpy_dtype(header.config.variable_dtype))
        file.seek(header.offsets[name])
        if file.readinto(weight.reshape(-1).view("u1").data) != weight.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"its {name} is cut short")
        weight.flags.writeable = False
        weights[name] = weight
    layer = Layer(header.config, **weights)
    if layer.digest != key:
        raise ValueError("its contents have another digest")
    return layer


def _read_header(file: BinaryIO, size: int | None = None) -> _Header:
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header says that it has {length} bytes")
    tensors = json.loads(file.read(length))
    metadata = tensors["__metadata__"]
    is_sound = metadata["checksum"] == _checksum(metadata["conv2d"])
    config = configuration_in(metadata) if is_sound else None
    if config is None:
        raise ValueError("its header has another format, or another checksum")
    names = ("kernel", "bias") if config.use_bias else ("kernel",)
    shapes: dict[str, Shape] = {name: tuple(map(operator.index, tensors[name]["shape"])) for name in names}
    check_weight_shapes(config, shapes["kernel"], config.use_bias)
    position, offsets = 8 + length, {}
    for name, shape in shapes.items():
        begin, end = map(operator.index, tensors[name]["data_offsets"])
        weight_bytes = math.prod(shape) * itemsize(config.variable_dtype)
        if begin < 0 or end - begin != weight_bytes or DTYPES[tensors[name]["dtype"]] != config.variable_dtype:
            raise ValueError(f"its header describes another {name}")
        offsets[name] = 8 + length + begin
        position += weight_bytes
    size = file.seek(0, os.SEEK_END) if size is None else size
    if size != position or shapes.get("bias", (config.filters,)) != (config.filters,):
        raise ValueError(f"it has {size} bytes, and was written with {position}")
    return _Header(config, shapes, offsets)


def _checksum(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()
