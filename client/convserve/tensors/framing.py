"""Messages with a tensor as their last field, written and read without copying the tensor through a protobuf object.

The bytes are ordinary protobuf, which any other language writes and reads as usual. What saves the copies is the
order: the contract gives the tensor, and in it the elements, the highest field number, so a writer can join a small
head, a tag and a length with the caller's own memory, and a reader finds the elements at the end. A message in any
other order, which protobuf allows, is read by the stock parser.
"""

from __future__ import annotations

import functools
import math
from contextlib import suppress
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from convserve.tensors.codec import Array, Shape, decode, dtype_number, itemsize, name_of, numpy_dtype
from convserve.v1 import tensor_pb2

_PAYLOAD_FIELD = 15  # of a tensor in its message, and of the elements in a Tensor
_PAYLOAD_TAG = bytes([_PAYLOAD_FIELD << 3 | 2])
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}
_MAX_FIELDS = 10_000

M = TypeVar("M", bound=Message)


class Frame:
    """What stands before the elements of a tensor that is a message's last field, and is field 15 of it.

    Attributes:
        opening: The tensor's tag, length, dtype and shape, and the tag and length of its elements.
    """

    def __init__(self, dtype: str, shape: Shape) -> None:
        self._name, self._shape = dtype, shape
        self._size = math.prod(shape) * itemsize(dtype)
        head = tensor_pb2.Tensor(dtype=dtype_number(dtype), shape=shape).SerializeToString()
        elements = opening(self._size)
        self.opening = opening(len(head) + len(elements) + self._size) + head + elements

    def read(self, kind: type[M], name: str, data: bytes) -> tuple[M, Array | None]:
        """Returns what the function `read` does, in fewer steps if the tensor is as expected."""
        end = len(data) - self._size
        begin = end - len(self.opening)
        if begin < 0 or data[begin:end] != self.opening:
            return read(kind, name, data)
        # A message is what its fields are, one after the other: the frame is one if those before are whole.
        with suppress(DecodeError):
            message = kind.FromString(data[:begin])
            if not message.HasField(name):  # else two tensors, which protobuf merges
                return message, np.ndarray(self._shape, numpy_dtype(self._name), data, end)
        return read(kind, name, data)


frame = functools.lru_cache(1024)(Frame)  # callers send what is shaped like what they sent before


def write(message: Message, array: Array) -> bytes:
    """Returns the bytes of a message whose tensor (field 15), not set in it, is a C-contiguous, little-endian array."""
    opened = frame(name_of(array), array.shape).opening
    return b"".join((message.SerializeToString(), opened, array.reshape(-1).view("u1").data))


def read(kind: type[M], name: str, data: bytes) -> tuple[M, Array | None]:
    """Returns a message without its tensor, field 15 with this name, and that as a read-only array on `data` itself.

    The array is None if the message has no tensor, or one whose elements are in shared memory; that one stays in it.

    Raises:
        DecodeError: If the bytes are no such message.
        InvalidTensorError: If the tensor contradicts itself.
    """
    split = read_piece(data)
    inner = None if split is None else read_piece(split[1])
    if split is not None and inner is not None:
        message = kind.FromString(split[0])
        tensor = tensor_pb2.Tensor.FromString(inner[0])
        if inner[1] or not tensor.HasField("shared_memory"):
            return message, decode(tensor, name, elements=inner[1])
    message = kind.FromString(data)
    tensor = getattr(message, name)
    if not message.HasField(name) or (tensor.HasField("shared_memory") and not tensor.data):
        return message, None
    array = decode(tensor, name)
    message.ClearField(name)
    return message, array


def head(kind: type[M], data: bytes) -> M:
    """Returns a message without its field 15, at whose contents nobody looks; raises DecodeError if it is none."""
    split = read_piece(data)
    return kind.FromString(data if split is None else split[0])


def opening(length: int) -> bytes:
    """Returns what stands before a field 15 of `length` bytes: its tag and the length."""
    return _PAYLOAD_TAG + _varint(length)


def write_piece(head: bytes, elements: memoryview) -> bytes:
    """Returns the bytes of a stream's message: fields before 15, and in that one a piece of a tensor's elements."""
    return b"".join((head, opening(len(elements)), elements))


def read_piece(data: bytes | memoryview) -> tuple[bytes, memoryview] | None:
    """Returns what stands before a message's field 15 and its contents, if it is the last field, and there is one.

    It returns None for what `write_piece` did not write, which the stock parser is to read.
    """
    split = read_last_fields(_PAYLOAD_FIELD, data, 1)
    return split and (split[0], split[1][0])


def write_field(number: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """Returns the pieces of a field of bytes: its tag and length, and what it consists of."""
    return [_varint(number << 3 | _LENGTH) + _varint(sum(map(len, parts))), *parts]


def read_last_fields(
    number: int, data: bytes | memoryview, most: int = _MAX_FIELDS
) -> tuple[bytes, list[memoryview]] | None:
    """Returns what stands before a message's fields of this number, and the contents of each, if they are the last.

    The field is `repeated bytes`; the contents are on `data` itself. It returns None for what only the stock parser is
    to read: if there is none of these fields, or more than `most`; if anything is not what a writer writes (a tag or
    length in other than its shortest form, which the stock parser may refuse); and if there are more fields than a
    message of ours has, so that nobody can keep a slow loop busy.
    """
    view, last = memoryview(data), number << 3 | _LENGTH
    begin = position = 0
    contents: list[memoryview] = []
    try:
        for _ in range(_MAX_FIELDS):
            tag, end = _read_shortest(view, position)
            kind = tag & 7
            if kind == _LENGTH:
                length, position = _read_shortest(view, end)
                end = position + length
            elif kind == _VARINT:
                end = _read_shortest(view, end)[1]
            elif kind in _FIXED:
                end += _FIXED[kind]
            else:
                return None  # a group, or what is no field
            if tag == last and len(contents) < most:
                contents.append(view[position:end])
            elif contents or tag >> 3 == number:
                return None
            else:
                begin = end
            position = end
            if position == len(view):
                return (bytes(data[:begin]), contents) if contents else None
    except (IndexError, ValueError):
        pass  # the message ends within a field, or is none
    return None


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Returns a number in whatever form, and where it ends; IndexError if that is not in the data."""
    if (value := data[position]) < 0x80:  # as most
        return value, position + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
    raise ValueError("it has a number of more than 64 bits")


def _read_shortest(data: memoryview, position: int) -> tuple[int, int]:
    """Returns a number in its shortest form, and where it ends; ValueError for any other."""
    if (value := data[position]) < 0x80:
        return value, position + 1
    value, end = read_varint(data, position)
    if not data[end - 1]:
        raise ValueError("a longer form of a number")
    return value, end


@functools.lru_cache(1024)  # callers send what is as long as what they sent before
def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
