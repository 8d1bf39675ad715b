"""What the layer store says where it cannot do what it is asked for."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from convserve.errors import FieldViolation, LayerNotFoundError, OverloadedError, TooLargeError, short_repr


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
    """Checks that a layer fits under a budget beside what is there.

    Args:
        size: The layer's bytes.
        held: Those that cannot be freed.
        budget: The most of both.
        setting: The budget's name.
        holder: What holds those.

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


@contextmanager
def overloaded_where_the_disk_is_full() -> Iterator[None]:
    """Turns a full disk into an error of the tree."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"Expected room on the disk of --store. Received none: {error.strerror}. Delete some layers."
        raise OverloadedError(text) from error
