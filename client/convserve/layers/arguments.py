"""Conv2D's arguments in Keras' many spellings, each brought to one form or refused with its Keras name."""

from __future__ import annotations

import functools
import json
import operator
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np

from convserve._keras_object import KerasObject
from convserve.activations import Activation
from convserve.constraints import Constraint
from convserve.errors import FieldViolation, InvalidArgumentError, InvalidConfigurationError, short_repr
from convserve.initializers import GlorotUniform, Initializer
from convserve.regularizers import Regularizer

T = TypeVar("T")
Pair = tuple[int, int]
Padding = Literal["valid", "same"] | tuple[Pair, Pair]
DataFormat = Literal["channels_last", "channels_first"]

DTYPE_POLICIES: dict[str, tuple[str, str]] = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float64": ("float64", "float64"),
    "mixed_float16": ("float16", "float32"),
    "mixed_bfloat16": ("bfloat16", "float32"),
}
"""Keras' floating-point dtype policies: the types of computation and of weights."""

INITIALIZERS = ("kernel_initializer", "bias_initializer")
FAMILIES: dict[str, type[KerasObject]] = {
    "activation": Activation,
    **dict.fromkeys(INITIALIZERS, Initializer),
    **dict.fromkeys(("kernel_regularizer", "bias_regularizer", "activity_regularizer"), Regularizer),
    **dict.fromkeys(("kernel_constraint", "bias_constraint"), Constraint),
}
"""Conv2D's parameters whose values are objects of Keras', with the class of what they may be."""
_DEFAULTS: dict[type[KerasObject], KerasObject] = {
    Activation: Activation.members["linear"](),
    Initializer: GlorotUniform(),
}
_LARGEST = 2**31 - 1  # int32 on the wire


class Arguments:
    """Collects what is wrong with a call's arguments, so that one error names all of it."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def take(self, standard: Callable[..., T], *arguments: Any) -> T:
        """Returns `standard(*arguments)`; a refusal is kept for `finish`, after which the value is never used."""
        try:
            return standard(*arguments)
        except InvalidArgumentError as error:
            self.violations.extend(error.violations)
            return cast(T, None)

    def refuse(self, field: str, expected: str, received: str, hint: str = "") -> None:
        """Keeps one more wrong field."""
        self.violations.extend(InvalidConfigurationError.for_field(field, expected, received, hint).violations)

    def finish(self) -> None:
        """Raises InvalidConfigurationError if anything was wrong."""
        if self.violations:
            raise InvalidConfigurationError(*self.violations)


def _refusal(
    field: str, expected: str, value: object, key: str = "", setting: object = None
) -> InvalidConfigurationError:
    """Returns the error for a value; or for None where `keras.json` has a setting under `key` that it stands for."""
    meaning = f", which is {short_repr(setting)} by {key!r} in keras.json" if key and value is None else ""
    return InvalidConfigurationError.for_field(field, expected, f"{field}={short_repr(value)}{meaning}")


def integer(value: Any) -> int:
    """Returns an integer, as `operator.index`; raises TypeError for a bool too, which is more likely a mistake."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def positive_integer(value: object, field: str) -> int:
    """Returns an integer of at least 1."""
    try:
        number = integer(value)
    except TypeError:
        number = 0
    if not 0 < number <= _LARGEST:
        raise _refusal(field, f"an integer greater than 0 and at most {_LARGEST}", value)
    return number


def positive_pair(value: object, field: str) -> Pair:
    """Returns (height, width) from an integer or two integers, each of at least 1."""
    try:
        height = width = integer(value)
    except TypeError:
        try:
            height, width = map(integer, cast(Iterable[int], value))
        except (TypeError, ValueError):
            height = width = 0
    if not (0 < height <= _LARGEST and 0 < width <= _LARGEST):
        expected = "an integer greater than 0, or a tuple or list of two of them (height, width)"
        raise _refusal(field, expected, value)
    return height, width


def standard_padding(value: object, field: str = "padding") -> Padding:
    """Returns "valid", "same", or ((top, bottom), (left, right)) from any case and any sequences.

    As in PyTorch and Keras' ZeroPadding2D, an integer or two (height, width) are amounts at both ends. PyTorch's 1 is
    not "same" once there are strides: that pads as the output's size needs, with strides of 2 often at the end only.
    """
    if isinstance(value, str) and value.lower() in ("valid", "same"):
        return cast(Padding, value.lower())
    try:
        (top, bottom), (left, right) = (map(integer, _twice(side)) for side in _twice(value))
    except (TypeError, ValueError):
        expected = "'valid', 'same' or ((top, bottom), (left, right)), amounts of at least 0; or PyTorch's one or two"
        raise _refusal(field, expected, value) from None
    if not all(0 <= amount <= _LARGEST for amount in (top, bottom, left, right)):
        raise _refusal(field, f"amounts from 0 to {_LARGEST}", value)
    return (top, bottom), (left, right)


def _twice(value: Any) -> Iterable[Any]:
    """Returns an integer twice, and anything else as it is."""
    try:
        return (integer(value),) * 2
    except TypeError:
        return cast(Iterable[Any], value)


def standard_data_format(value: object, field: str = "data_format") -> DataFormat:
    """Returns "channels_last" or "channels_first"; None is Keras' `image_data_format` (see `keras_setting`)."""
    name = keras_setting("image_data_format", "channels_last") if value is None else value
    if isinstance(name, str) and name.lower() in ("channels_last", "channels_first"):
        return cast(DataFormat, name.lower())
    raise _refusal(field, "'channels_last' or 'channels_first'", value, "image_data_format", name)


def standard_dtype_policy(value: object, field: str = "dtype") -> str:
    """Returns the name of a dtype policy, given as None, a name, a dtype, or Keras' policy or its configuration."""
    if isinstance(value, dict):
        name: object = (value.get("config") or {}).get("name")
    elif value is None:
        name = keras_setting("floatx", "float32")
    elif isinstance(value, str):
        name = value
    else:
        name = getattr(value, "name", None)
        if not isinstance(name, str):
            with suppress(TypeError):
                name = np.dtype(cast(Any, value)).name
    if isinstance(name, str) and name in DTYPE_POLICIES:
        return name
    expected = f"one of Keras' floating-point dtype policies {', '.join(DTYPE_POLICIES)}"
    raise _refusal(field, expected, value, "floatx", name)


def truth(value: object, field: str, kinds: Any = bool | np.bool_ | int | None) -> bool:
    """Returns True or False from a value of one of some kinds; as in Keras, None is False, and so is 0."""
    if isinstance(value, kinds):
        return bool(value)
    raise _refusal(field, "True or False", value)


def standard_name(value: object, field: str = "name") -> str | None:
    """Returns a layer's Keras name: None, or a string without "/" of at most 1000 characters."""
    if value is None or (isinstance(value, str) and not value):
        return None
    if isinstance(value, str) and "/" not in value:
        with suppress(UnicodeEncodeError):  # of half of a surrogate pair, which no message has
            if len(value.encode()) <= 1000:
                return value
    raise _refusal(field, "a string of at most 1000 characters without '/'", value)


def standard_input_shape(value: object, field: str = "input_shape") -> tuple[int | None, ...] | None:
    """Returns None, or three dimensions without the batch axis, None for one left open."""
    if value is None:
        return None
    try:
        shape = tuple(None if size is None else integer(size) for size in cast(Iterable[int | None], value))
    except TypeError:
        shape = ()
    if len(shape) == 3 and all(size is None or 0 < size < 2**63 for size in shape):
        return shape
    raise _refusal(field, "three dimensions without the batch axis, each at least 1 or None", value)


def keras_setting(key: str, default: str) -> str:
    """Returns what `keras.json` in `$KERAS_HOME` or `~/.keras` says, from which Keras takes its defaults too."""
    home = os.environ.get("KERAS_HOME")
    try:
        path = (Path(home) if home else Path.home() / ".keras") / "keras.json"
        state = path.stat()
        value = _keras_settings(path, state.st_mtime_ns, state.st_size).get(key, default)
    except (OSError, ValueError, AttributeError, RuntimeError):
        return default
    return value if isinstance(value, str) else default


@functools.lru_cache(maxsize=1)
def _keras_settings(path: Path, *_: int) -> dict[str, object]:
    """Returns a file's settings, read again only after it has changed."""
    return cast(dict[str, object], json.loads(path.read_text(encoding="utf-8")))


def _keras_object(value: object, field: str) -> KerasObject | None:
    """Returns what a parameter means that is one of FAMILIES, or what Keras has where it is None."""
    family = FAMILIES[field]
    if family is Initializer and hasattr(value, "__array__"):
        received = "an array: pass given weights as kernel= and bias="
        raise InvalidConfigurationError.for_field(field, "the name of an initializer", received)
    member = family.get(value, field) or _DEFAULTS.get(family)
    if field == "activity_regularizer" and member is not None and member.refusal:
        received = f"{short_repr(member)}: {member.refusal}"
        raise InvalidConfigurationError.for_field(field, "one that suits a Conv2D", received)
    return member


STANDARD: dict[str, Callable[[Any, str], object]] = {
    **dict.fromkeys(("filters", "groups"), positive_integer),
    **dict.fromkeys(("kernel_size", "strides", "dilation_rate"), positive_pair),
    **dict.fromkeys(FAMILIES, _keras_object),
    "padding": standard_padding,
    "data_format": standard_data_format,
    "use_bias": truth,
    "name": standard_name,
    "dtype": standard_dtype_policy,
    "trainable": functools.partial(truth, kinds=bool),
    "input_shape": standard_input_shape,
}
"""What brings each parameter to its one form, or refuses it."""
