"""Conv2D to the contract's message and back."""

from __future__ import annotations

import functools
from typing import Any

from convserve.errors import InvalidConfigurationError
from convserve.layers.arguments import DTYPE_POLICIES, FAMILIES, Arguments
from convserve.layers.conv2d import Conv2D
from convserve.v1 import conv2d_pb2


def _number(enum: str, word: str) -> Any:
    """Returns the number of a word of Keras' in one of the contract's enums: "dtype_policy" is DtypePolicy."""
    return getattr(conv2d_pb2, f"{enum}_{word}".upper())


_MAX_REMEMBERED_BYTES = 4096
_SIMPLE = ("groups", "use_bias", "trainable")
_PAIRS = ("kernel_size", "strides", "dilation_rate")
_DATA_FORMATS = {_number("data_format", word): word for word in ("channels_last", "channels_first")}
_PADDING_MODES = {_number("padding_mode", word): word for word in ("valid", "same")}
_DTYPE_POLICIES = {0: "float32"} | {_number("dtype_policy", name): name for name in DTYPE_POLICIES}


def to_message(conv2d: Conv2D) -> conv2d_pb2.Conv2D:
    """Returns the message of a configuration, every default explicit."""
    values: dict[str, Any] = {field: getattr(conv2d, field) for field in ("filters", *_SIMPLE)}
    for field in _PAIRS:
        height, width = getattr(conv2d, field)
        values[field] = conv2d_pb2.Size2D(height=height, width=width)
    for field in FAMILIES:
        if (value := getattr(conv2d, field)) is not None:
            values[field] = value.to_message()
    message = conv2d_pb2.Conv2D(
        **values,
        data_format=_number("data_format", conv2d.data_format),
        name=conv2d.name or "",
        dtype=_number("dtype_policy", conv2d.dtype),
        input_shape=[-1 if size is None else size for size in conv2d.input_shape or ()],
    )
    if isinstance(conv2d.padding, str):
        message.padding.mode = _number("padding_mode", conv2d.padding)
    else:
        (top, bottom), (left, right) = conv2d.padding
        message.padding.explicit.CopyFrom(conv2d_pb2.ExplicitPadding(top=top, bottom=bottom, left=left, right=right))
    return message


def from_message(message: conv2d_pb2.Conv2D) -> Conv2D:
    """Returns the configuration that a message means; what is not set has Keras' default.

    Raises InvalidConfigurationError: Names every field that is wrong, in the words that Conv2D itself uses.
    """
    # A configuration is a value, and most of them come again: with every call that carries its layer.
    data = message.SerializeToString(deterministic=True)
    return _remembered(data) if len(data) <= _MAX_REMEMBERED_BYTES else _read(message)


@functools.lru_cache(maxsize=1000)
def _remembered(data: bytes) -> Conv2D:
    return _read(conv2d_pb2.Conv2D.FromString(data))


def _read(message: conv2d_pb2.Conv2D) -> Conv2D:
    arguments = Arguments()
    values: dict[str, Any] = {
        "data_format": arguments.take(_word, _DATA_FORMATS, message.data_format, "data_format"),
        "padding": arguments.take(_padding, message),
        "dtype": arguments.take(_word, _DTYPE_POLICIES, message.dtype, "dtype"),
        "name": message.name or None,
        "input_shape": tuple(None if size == -1 else size for size in message.input_shape) or None,
        "kernel_size": 0,
    }
    values |= {field: getattr(message, field) for field in _SIMPLE if message.HasField(field)}
    for field in filter(message.HasField, _PAIRS):
        size = getattr(message, field)
        values[field] = (size.height, size.width)
    for field, family in FAMILIES.items():
        if message.HasField(field):
            values[field] = arguments.take(family.from_message, getattr(message, field), field)
    refused = {violation.field.partition(".")[0] for violation in arguments.violations}
    # Stand-ins for what was refused, so that the constructor reports the rest.
    stand_ins = {"data_format": "channels_last", "dtype": "float32", "padding": ((0, 0), (0, 0))}
    values |= {field: stand_ins.get(field) for field in refused}
    conv2d = arguments.take(lambda: Conv2D(message.filters, **values))
    arguments.finish()
    return conv2d


def _word(words: dict[Any, str], number: int, field: str) -> str:
    if number in words:
        return words[number]
    expected = ", ".join(dict.fromkeys(words.values()))
    received = "none: the field is not set" if number == 0 else f"the unknown number {number}"
    raise InvalidConfigurationError.for_field(field, f"one of {expected}", received)


def _padding(message: conv2d_pb2.Conv2D) -> Any:
    if not message.HasField("padding"):
        return "valid"
    kind = message.padding.WhichOneof("kind")
    if kind == "explicit":
        amounts = message.padding.explicit
        return (amounts.top, amounts.bottom), (amounts.left, amounts.right)
    return _word(_PADDING_MODES, message.padding.mode if kind else 0, "padding")
