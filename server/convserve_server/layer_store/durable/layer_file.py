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

import numpy as np
from safetensors.numpy import save

from convserve.files.layers import configuration_in, metadata_of
from convserve.files.safetensors import DTYPES
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.weight_shapes import check_weight_shapes
from convserve.tensors.aligned import ALIGNMENT, aligned_empty
from convserve.tensors.codec import Array, Shape, itemsize, numpy_dtype
from convserve_server.layer_store.cache import at_rest
from convserve_server.layer_store.stored_layer import LayerHead

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, PermissionError, IsADirectoryError)
"""What reading a file of somebody else's raises, or one that may not be read; deep nesting is a RecursionError."""

_MAX_HEADER = 2**20


class LayerHeader(NamedTuple):
    """A file's header: the configuration, and for each weight its shape and where it begins in the file."""

    config: Conv2D
    shapes: dict[str, Shape]
    offsets: dict[str, int]
    size: int  # of the whole file, in bytes

    @property
    def head(self) -> LayerHead:
        """What it says of the layer, of which the weights may be others."""
        return LayerHead(self.config, self.shapes["kernel"])

    def memory(self) -> Array:
        """Returns memory for the whole file, in which its kernel will be aligned."""
        begin = -self.offsets["kernel"] % ALIGNMENT
        return aligned_empty((begin + self.size,), np.uint8)[begin:]

    def layer(self, content: Array, key: bytes) -> Layer:
        """Returns the layer with this digest, its kernel where it is in the file's content; or raises a DAMAGE."""
        weights = {}
        for name, shape in self.shapes.items():
            begin, dtype = self.offsets[name], numpy_dtype(self.config.variable_dtype)
            weights[name] = content[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        layer = at_rest(Layer(self.config, **weights))
        if layer.digest != key:
            raise ValueError("its contents have another digest")
        return layer


def encode(layer: Layer) -> bytes:
    """Returns the contents of a layer's file."""
    metadata = metadata_of(layer.config)
    data: bytes = save(layer.arrays, metadata | {"checksum": _checksum(metadata["conv2d"])})
    return data


def read_layer(file: BinaryIO, key: bytes) -> Layer:
    """Returns the layer with this digest, its weights in aligned, read-only memory; or raises a DAMAGE."""
    header = read_header(file)
    content = header.memory()
    file.seek(0)
    if file.readinto(content.data) != header.size:  # type: ignore[attr-defined]
        raise ValueError("it is cut short")
    return header.layer(content, key)


def read_header(file: BinaryIO, size: int | None = None) -> LayerHeader:
    """Returns a file's header, or raises a DAMAGE. Where only the file's beginning is at hand, its size is given."""
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
    return LayerHeader(config, shapes, offsets, size)


def _checksum(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()
