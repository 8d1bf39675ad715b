"""The errors of a layer that is not stored, is not the expected one, or has no room."""

from __future__ import annotations

from convserve.errors import (
    FieldViolation,
    InvalidRequestError,
    LayerNotFoundError,
    OverloadedError,
    TooLargeError,
    short_repr,
)


def not_found(key: bytes) -> LayerNotFoundError:
    """Returns the error of a digest that is not held."""
    text = f"Expected a stored layer. Received digest {key.hex()}, which this server does not hold: put it."
    return LayerNotFoundError(text, layer=key.hex())


def name_not_found(name: str, key: bytes | None = None) -> LayerNotFoundError:
    """Returns the error of a name that is not known, or of one whose layer was lost."""
    lost = f", until the layer {key.hex()}, which was lost, is put again" if key else ""
    text = f"Expected the name of a stored layer. Received {short_repr(name)}, which leads nowhere{lost}."
    return LayerNotFoundError(text, layer=name, by_name=True)


def check_digest(key: bytes, expected: bytes) -> None:
    """Checks that a layer has the digest that its caller expects, if any.

    Raises:
        InvalidRequestError: If it has another.
    """
    if expected and key != expected:
        text = f"Expected what arrives to have the digest {expected.hex()}. Received a layer with digest {key.hex()}."
        raise InvalidRequestError(FieldViolation("expected_digest", text))


def check_room(size: int, held: int, budget: int, setting: str, holder: str) -> None:
    """Checks that a layer fits under a budget beside what is there.

    Args:
        size: The layer's bytes.
        held: The bytes that cannot be freed.
        budget: The most of both together.
        setting: The budget's name.
        holder: What takes the bytes that cannot be freed.

    Raises:
        TooLargeError: If it is larger than the whole budget.
        OverloadedError: If there is no room and nothing may be evicted.
    """
    if size > budget:
        text = (
            f"Expected a layer of at most {budget} bytes, the server's --{setting}. Received one of {size} bytes: "
            "ask the operator to raise it."
        )
        raise TooLargeError(FieldViolation("kernel", text))
    if held + size > budget:
        text = (
            f"Expected room for {size} bytes under the server's --{setting} of {budget}. Received none, because "
            f"{holder} take {held}: delete some, or ask the operator to raise it."
        )
        raise OverloadedError(text)
