"""The form that initializers, regularizers, constraints and activations share: a Keras name with typed parameters.

Each family is a message with one `oneof`; each member is a frozen dataclass with Keras' class name, parameters and
defaults, and its message has fields of the same names. So one reader and one writer serve them all, and a caller's
dictionary only selects a member and fills in its parameters: it is never handed to a deserializer.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import numbers
import operator
import re
import typing
from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar, Self, TypeVar, cast

from google.protobuf.message import Message

from convserve.errors import FieldViolation, InvalidConfigurationError, short_repr

T = TypeVar("T")
_MAX_FLOAT32 = 3.4028234663852886e38  # Keras refuses what overflows there


def number(
    default: float | None, *, at_least: float = -math.inf, above: float = -math.inf, required: bool = False
) -> Any:
    """Declares a finite number, Keras' default being `default`."""

    def convert(value: object) -> float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        checked = float(cast(float, value)) if is_number else math.nan
        # NaN compares false.
        return _valid(checked, checked >= at_least and checked > above and abs(checked) <= _MAX_FLOAT32)

    bound = f" of at least {at_least:g}" if at_least > -math.inf else f" above {above:g}" if above > -math.inf else ""
    return _parameter(default, f"a finite number{bound}", convert, required)


def seed() -> Any:
    """Declares a seed: an integer of 64 bits, or None."""
    return _parameter(None, "an integer of 64 bits or None", lambda value: _integer(value, range(-(2**63), 2**63)))


def flag(default: bool) -> Any:
    """Declares a truth value."""
    return _parameter(default, "True or False", lambda value: _valid(value, isinstance(value, bool)))


_MAX_AXES, _MAX_WORD = 8, 100  # of what a layer says of itself, which is kept and listed


def word(default: str, *allowed: str) -> Any:
    """Declares one of several words, or any word where none are listed."""

    def convert(value: Any) -> str:
        word: str = _valid(value, isinstance(value, str) and len(value) <= _MAX_WORD)
        return _valid(word.lower(), word.lower() in allowed) if allowed else word

    return _parameter(default, f"one of {', '.join(map(repr, allowed))}" if allowed else "a word", convert)


def axes(default: tuple[int, ...] | None) -> Any:
    """Declares a list of axes of a weight; a single integer stands for a list of one."""

    def convert(value: object) -> tuple[int, ...]:
        listed = value if isinstance(value, list | tuple) else (value,)
        _valid(listed, len(listed) <= _MAX_AXES)
        return _valid(tuple(_integer(axis, range(-4, 4)) for axis in listed), bool(listed))

    return _parameter(default, f"an integer or a list of up to {_MAX_AXES} integers, axes from -4 to 3", convert)


def output_axis() -> Any:
    """Declares the axis of an output along which an activation acts."""
    expected = "an axis from -3 to -1 or from 1 to 3; axis 0 would mix the samples of a batch"
    return _parameter(-1, expected, lambda value: _integer(value, (-3, -2, -1, 1, 2, 3)))


def _integer(value: object, allowed: Container[int]) -> int:
    integer = operator.index(cast(int, _valid(value, not isinstance(value, bool))))
    return _valid(integer, integer in allowed)


def _valid(value: T, is_valid: bool) -> T:
    if not is_valid:
        raise ValueError
    return value


def _parameter(default: object, expected: str, convert: Callable[[object], object], required: bool = False) -> Any:
    """Declares a parameter that `convert` brings to one form, or refuses by a TypeError or ValueError."""
    metadata = {"expected": expected, "convert": convert, "required": required}
    return dataclasses.field(default=default, metadata=metadata)


@typing.dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True, repr=False)
class KerasObject:
    """A Keras name with its parameters. Every class that inherits from it is a frozen dataclass.

    Attributes:
        keras_name: The snake_case name, which is also the name in the contract's `oneof`.
        aliases: Further names that Keras has for it.
        refusal: For a member that no weight of a Conv2D suits: why.
        family: What Keras calls the whole family, for messages.
        has_class_names: Whether Keras finds a member under its class' name too.
    """

    keras_name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    refusal: ClassVar[str] = ""
    family: ClassVar[str]
    has_class_names: ClassVar[bool] = True
    members: ClassVar[dict[str, type[KerasObject]]]
    message: ClassVar[type[Message]]

    def __init_subclass__(cls) -> None:
        """Enters a member into its family's table under all its names."""
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, repr=False)(cls)
        if "family" in cls.__dict__:
            cls.members = {}
        elif not cls.__name__.startswith("_"):
            if "keras_name" not in cls.__dict__:
                cls.keras_name = re.sub("(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
            class_names = (cls.__name__,) if cls.has_class_names else ()
            cls.members.update(dict.fromkeys((cls.keras_name, *class_names, *cls.aliases), cls))

    def __post_init__(self) -> None:
        """Checks and normalises every parameter."""
        violations = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and not field.metadata["required"]:
                # As in Keras, None asks for the default.
                object.__setattr__(self, field.name, field.default)
                continue
            try:
                object.__setattr__(self, field.name, field.metadata["convert"](value))
            except (TypeError, ValueError, OverflowError):  # Overflow: an integer beyond every float
                expected, received = field.metadata["expected"], f"{self.keras_name} with {field.name}="
                text = f"Expected {expected}. Received {received}{short_repr(value)}."
                violations.append(FieldViolation(field.name, text))
        if violations:
            raise InvalidConfigurationError(*violations)

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how to make it again, by its Keras name: of most activations no module holds the class."""
        family = cast(type[KerasObject], next(kind for kind in type(self).__mro__ if "family" in vars(kind)))
        return family.get, ({"class_name": self.keras_name, "config": self.parameters}, family.family)

    def __repr__(self) -> str:
        """Returns the call that makes it, without the defaults."""
        fields = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        given = (f"{field.name}={value!r}" for field, value in fields if value != field.default)
        return f"{type(self).__qualname__}({', '.join(given)})"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, defaults included."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def get(cls, identifier: object, field: str) -> Self | None:
        """Returns what an identifier means, as `keras.initializers.get` and its siblings do.

        It is None; a member; a Keras name; a dictionary with `class_name` and `config`, as `keras.*.serialize` makes
        them; or Keras' own object or class, whose configuration is read. For anything else, an unknown name or wrong
        parameters InvalidConfigurationError is raised.
        """
        if identifier is None or isinstance(identifier, cls):
            return identifier
        try:
            name, config = cls._named(identifier)
        except ValueError as error:
            raise InvalidConfigurationError.for_field(field, str(error), short_repr(identifier)) from None
        member = cls.members.get(name)
        if member is None:
            near = [known for known in cls.members if known.lower() == name.lower()]
            near = near or difflib.get_close_matches(name, cls.members)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted({member.keras_name for member in cls.members.values()}))
            expected = f"one of Keras' {cls.family}s: {known}"
            raise InvalidConfigurationError.for_field(field, expected, short_repr(name), hint)
        names = [parameter.name for parameter in dataclasses.fields(member)]
        strange = [key for key in config if key not in names]
        if strange:
            known = f"the parameters {', '.join(names)}" if names else "no parameters"
            received = ", ".join(map(short_repr, strange))
            raise InvalidConfigurationError.for_field(field, f"{known} of {member.keras_name}", received)
        try:
            return cast(Self, member(**config))
        except InvalidConfigurationError as error:
            raise error.under(f"{field}.") from None

    @classmethod
    def _named(cls, identifier: object) -> tuple[str, Mapping[str, Any]]:
        """Returns the name and the parameters that an identifier carries.

        Raises ValueError for one that carries none; the text says what was expected.
        """
        if isinstance(identifier, str):
            return identifier, {}
        if isinstance(identifier, Mapping):
            name, config = identifier.get("class_name"), identifier.get("config") or {}
            if not isinstance(name, str) or not isinstance(config, Mapping):
                raise ValueError("a dictionary {'class_name': NAME, 'config': {PARAMETER: VALUE}}")
            return name, config
        kind = identifier if inspect.isclass(identifier) else type(identifier)
        if (kind.__module__ or "").split(".")[0] in ("keras", "tf_keras"):
            return kind.__name__, {} if inspect.isclass(identifier) else cast(Any, identifier).get_config()
        raise ValueError(f"a name out of Keras' {cls.family}s, a dictionary, or an object of keras.{cls.family}s")

    def to_keras_config(self) -> dict[str, Any] | str:
        """Returns the dictionary that `keras.*.deserialize` takes."""
        config = {name: list(value) if isinstance(value, tuple) else value for name, value in self.parameters.items()}
        return {"module": f"keras.{self.family}s", "class_name": type(self).__name__, "config": config}

    def to_message(self) -> Message:
        """Returns the contract's message, every parameter explicit."""
        family = self.message()
        member = getattr(family, self.keras_name)
        member.SetInParent()
        for name, value in self.parameters.items():
            if isinstance(value, tuple):
                target = getattr(member, name)
                (target.axis if isinstance(target, Message) else target).extend(value)  # type: ignore[attr-defined]
            elif value is not None:
                setattr(member, name, value)
        return family

    @classmethod
    def from_message(cls, message: Message, field: str) -> Self:
        """Returns what a message means; a parameter that is not set has Keras' default.

        Raises InvalidConfigurationError if no kind is set, or a parameter is wrong.
        """
        if not message.ListFields():
            expected = f"one of Keras' {cls.family}s to be set"
            raise InvalidConfigurationError.for_field(field, expected, "none, or one that is not known here")
        ((kind, member),) = message.ListFields()
        config = {}
        for parameter, value in member.ListFields():
            listed = value.axis if isinstance(value, Message) else value  # type: ignore[attr-defined]
            config[parameter.name] = listed if isinstance(listed, bool | int | float | str) else tuple(listed)
        return cast(Self, cls.get({"class_name": kind.name, "config": config}, field))
