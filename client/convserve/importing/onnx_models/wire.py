"""Bounds on a serialized model, checked before Protocol Buffers make objects of it.

An empty message takes two bytes in a file, and a hundred times as many in memory. So a file is gone over once, message
by message, without making any.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from convserve.importing.untrusted import Budget, refusal
from convserve.tensors.framing import read_varint

MOST_BYTES = 2**31 - 1
"""Protocol Buffers take no more in one piece."""
_DEEPEST, _DEEPEST_GRAPHS = 90, 16  # Protocol Buffers stop at 100
_MESSAGE_BYTES, _FIELD_BYTES = 256, 16
"""What a message takes in memory at most, and any other field beside its own bytes: measured, with protobuf 6.33."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def check(data: bytes, model: Any, budget: Budget) -> None:
    """Counts what a serialized message, of this descriptor, will take in memory.

    Raises InvalidRequestError if it is too much or nested too deep, and ValueError if the bytes are no message.
    """
    budget.spend(len(data), "the model")
    try:
        _Scan(data, budget).message(0, len(data), model, 0, 0)
    except IndexError:
        raise ValueError("it ends in the middle of a field") from None


class _Scan:
    """Goes over a serialized message."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        self._data = data
        self._budget = budget

    def message(self, at: int, end: int, kind: Any, depth: int, graphs: int) -> None:
        """Counts what a message takes, and those in it."""
        graphs += kind.name == "GraphProto"
        if graphs > _DEEPEST_GRAPHS:
            raise refusal(f"graphs that are nested at most {_DEEPEST_GRAPHS} deep", "deeper ones")
        if depth > _DEEPEST:
            raise refusal(f"messages that are nested at most {_DEEPEST} deep", "deeper ones")
        inner = _messages_of(kind)
        self._budget.spend(_MESSAGE_BYTES, "a message")
        data, fields = self._data, 0
        while at < end:
            tag, at = read_varint(data, at)
            wire_type = tag & 7
            if wire_type == _LENGTH:
                length, at = read_varint(data, at)
                if length > end - at:
                    raise ValueError("it ends in the middle of a field")
                field = inner.get(tag >> 3)
                if field is None:
                    fields += 1
                else:
                    self.message(at, at + length, field, depth + 1, graphs)
                at += length
                continue
            fields += 1
            if wire_type == _VARINT:
                while data[at] > 127:
                    at += 1
                at += 1
            elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
                at += 8 if wire_type == _EIGHT_BYTES else 4
            else:
                raise ValueError(f"it has a field of wire type {wire_type}, which ONNX has not")
        if at > end:
            raise ValueError("it ends in the middle of a field")
        self._budget.spend(fields * _FIELD_BYTES, "the fields of a message")


@cache
def _messages_of(kind: Any) -> dict[int, Any]:
    """Returns the descriptors of those of a message's fields that are messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}
