"""Fields of protobuf's wire format, written byte by byte: also as no writer does, but every parser reads."""

from __future__ import annotations


def varint(value: int, length: int = 1) -> bytes:
    """Returns a varint, written with more bytes than it needs where `length` says so."""
    groups = []
    while value > 0x7F or len(groups) + 1 < length:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, content: bytes, tag_bytes: int = 1, length_bytes: int = 1) -> bytes:
    """Returns a length-delimited field."""
    return varint(number << 3 | 2, tag_bytes) + varint(len(content), length_bytes) + content
