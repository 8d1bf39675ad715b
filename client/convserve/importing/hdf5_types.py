"""What an HDF5 array's elements are, and how many: its messages of type and shape."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from convserve.importing.untrusted import refusal
from convserve.tensor import Shape

_FLOAT, _FIXED_TEXT, _OPAQUE, _VARIABLE = 1, 3, 5, 9
_VARIABLE_TEXT = 1

# Size, and where exponent and mantissa are: position and bits of each, and the exponent's bias.
_FLOATS = {
    (2, 10, 5, 0, 10, 15): "f2",
    (4, 23, 8, 0, 23, 127): "f4",
    (8, 52, 11, 0, 52, 1023): "f8",
    (2, 7, 8, 0, 7, 127): "bfloat16",
}


@dataclass(frozen=True)
class Type:
    """The type of elements.

    Attributes:
        size: Bytes of one.
        numpy: numpy's name of a floating-point type, that of bfloat16's bits included; None for another type.
        is_bfloat16: Whether it is bfloat16.
        is_text: Whether it is a text.
        is_variable: Whether the elements are a length, and a place in a heap.
    """

    size: int
    numpy: str | None = None
    is_bfloat16: bool = False
    is_text: bool = False
    is_variable: bool = False


def datatype(message: bytes) -> Type:
    """Returns the type that a message means; one that neither weights nor names have is none of the known ones."""
    head, bits, size = struct.unpack("<BH1xI", message[:8])
    kind = head & 0x0F
    if size == 0:
        raise ValueError("a type has no size")
    if kind == _FLOAT:
        name = _FLOATS.get((size, *struct.unpack("<BBBBI", message[12:20])))
        order = {0: "<", 1: ">"}.get(bits & 0x41)
        if name is None or order is None:
            return Type(size)
        return Type(size, order + ("u2" if name == "bfloat16" else name), is_bfloat16=name == "bfloat16")
    if kind == _OPAQUE and size == 2:
        # How h5py writes bfloat16, and nothing else that a layer's weights may be.
        return Type(size, "<u2", is_bfloat16=True)
    if kind == _FIXED_TEXT:
        return Type(size, is_text=True)
    if kind == _VARIABLE and bits & 0x0F == _VARIABLE_TEXT and size == 16:
        return Type(size, is_text=True, is_variable=True)
    return Type(size)


def dataspace(message: bytes) -> Shape:
    """Returns the shape that a message means; () for a single element."""
    version, rank, kind = struct.unpack("<BBxB", message[:4])
    begin = {1: 8, 2: 4}.get(version)
    if begin is None:
        raise refusal("an HDF5 file with plain shapes", f"one with shapes of version {version}")
    if version == 2 and kind == 2:  # no elements at all
        return (0,)
    return struct.unpack(f"<{rank}Q", message[begin : begin + 8 * rank])
