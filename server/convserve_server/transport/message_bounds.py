"""Decides what a message may consist of, on the wire before it is parsed; how long it may be, options.py tells gRPC.

A parsed message takes many times its bytes if these are empty messages within it, and what reads it takes as long. Only
fields of bytes, in which tensors and digests travel, take no more than they are: they may have any length, and are
passed over. So the count takes as long as there are fields, and ends at the bound.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from convserve.errors import TooLargeError
from convserve.tensors.framing import read_varint

FIELDS_OF_A_LAYER = 64
"""More than any configuration has with its weights, with all that is in it."""
MAX_OTHER_BYTES = 2**22
"""Of one message, beside fields of bytes: texts, lists of numbers, and what is unknown."""
_UNCOUNTED_BYTES = 2**16  # a message that is no longer cannot do harm, whatever it consists of

_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}  # kinds of so many bytes

_Table = dict[int, Any]
"""By tag: the table of the message in a field, or None where a field has bytes. Others are in none."""


class MessageBound:
    """The bound of one type's messages; without a type, of messages whose fields are not known."""

    def __init__(self, max_fields: int, descriptor: Descriptor | None = None) -> None:
        """Takes how many fields a message may have, with those of the messages in it."""
        self._max_fields = max_fields
        self._table: _Table = {} if descriptor is None else _table(descriptor, {})

    def check(self, data: bytes) -> None:
        """Raises TooLargeError for a message of too many fields or bytes, or DecodeError for what is none."""
        if len(data) > _UNCOUNTED_BYTES:
            try:
                _count(data, self._table, self._max_fields)
            except TooLargeError:
                raise
            except IndexError:
                raise DecodeError("it ends within a field") from None
            except ValueError as error:
                raise DecodeError(str(error)) from None


def _table(descriptor: Descriptor, known: dict[str, _Table]) -> _Table:
    table = known.get(descriptor.full_name)
    if table is None:
        table = known[descriptor.full_name] = {}  # first: a type may contain itself
        for field in descriptor.fields:
            if field.message_type is not None:
                table[field.number << 3 | _LENGTH] = _table(field.message_type, known)
            elif field.type == FieldDescriptor.TYPE_BYTES:
                table[field.number << 3 | _LENGTH] = None
    return table


def _count(data: bytes, table: _Table, max_fields: int) -> None:
    """Raises IndexError if the data end within a field, ValueError if they are no fields, or TooLargeError."""
    fields = others = position = 0
    around = [(len(data), table)]  # the messages that the position is in, with their ends
    while around:
        end, table = around[-1]
        if position >= end:
            if position > end:
                raise IndexError
            around.pop()
            continue
        tag, position = read_varint(data, position)
        fields += 1
        kind = tag & 7
        if kind == _LENGTH:
            length, position = read_varint(data, position)
            inner = table.get(tag, {})
            if inner:
                if position + length > end:
                    raise IndexError
                around.append((position + length, inner))
            else:
                position += length
                others += 0 if inner is None else length
        elif kind == _VARINT:
            position = read_varint(data, position)[1]
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:
            raise ValueError("a field of a kind that no message of the contract has")
        if fields > max_fields:
            raise _too_large(f"{max_fields} fields, those of the messages in it too", fields)
        if others > MAX_OTHER_BYTES:
            raise _too_large(f"{MAX_OTHER_BYTES} bytes beside those of tensors", others)


def _too_large(most: str, counted: int) -> TooLargeError:
    received = f"{counted}, or more, as the rest is not counted: send less in one message"
    return TooLargeError.for_field("request", f"a message of at most {most}", received)
