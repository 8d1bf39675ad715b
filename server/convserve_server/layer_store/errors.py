"""The errors of a layer that is not stored, or has no room, and of a digest that is none."""

from __future__ import annotations

from convserve.errors import (
    InvalidRequestError,
    LayerNotFoundError,
    OverloadedError,
    TooLargeError,
    short_repr,
)


def checked_digest(digest: bytes) -> bytes:
    """Returns a caller's digest. Raises InvalidRequestError if it has another length."""
    if len(digest) != 32:
        raise InvalidRequestError.for_field("digest", "a digest of 32 bytes", f"{len(digest)} bytes")
    return digest


def not_found(key: bytes) -> LayerNotFoundError:
    """Returns the error of a digest that is not held."""
    text = f"Expected a stored layer. Received digest {key.hex()}, which this server does not hold: put it."
    return LayerNotFoundError(text, layer=key.hex())


def name_not_found(name: str, key: bytes | None = None) -> LayerNotFoundError:
    """Returns the error of a name that is not known, or of one whose layer was lost."""
    lost = f", until the layer {key.hex()}, which was lost, is put again" if key else ""
    text = f"Expected the name of a stored layer. Received {short_repr(name)}, which leads nowhere{lost}."
    return LayerNotFoundError(text, layer=name, by_name=True)


def check_room(size: int, held: int, budget: int, setting: str, holder: str) -> None:
    """Checks that a layer fits under a setting's budget beside the bytes that its holder does not free.

    Raises TooLargeError if it is larger than the whole budget, or OverloadedError if there is no room now.
    """
    if size > budget:
        expected = f"a layer of at most {budget} bytes, the server's --{setting}"
        raise TooLargeError.for_field("kernel", expected, f"one of {size} bytes: ask the operator to raise it")
    if held + size > budget:
        text = (
            f"Expected room for {size} bytes under the server's --{setting} of {budget}. Received none, because "
            f"{holder} take {held}: delete some, or ask the operator to raise it."
        )
        raise OverloadedError(text)
