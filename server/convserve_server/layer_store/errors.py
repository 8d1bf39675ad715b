"""The errors of a layer that is not stored, or has no room, of a digest that is none, and of a disk that fails."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from convserve.errors import (
    ConvserveError,
    InvalidRequestError,
    LayerNotFoundError,
    NameConflictError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
    short_repr,
)
from convserve.protocol.name_messages import ABSENT

log = logging.getLogger("convserve")

_RETRY_S = 1.0


def checked_digest(digest: bytes, field: str = "digest") -> bytes:
    """Returns a caller's digest. Raises InvalidRequestError for the field if it has another length."""
    if len(digest) != 32:
        raise InvalidRequestError.for_field(field, "a digest of 32 bytes", f"{len(digest)} bytes")
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


def version_not_found(name: str, number: int, first: int, latest: int) -> LayerNotFoundError:
    """Returns the error of a version that a name does not have, or not any more."""
    text = f"Expected one of the versions {first} to {latest} of the name {short_repr(name)}. Received {number}."
    return LayerNotFoundError(text, layer=name, by_name=True)


def name_conflict(name: str, expected: bytes | None, found: bytes, version: int) -> NameConflictError:
    """Returns the error of a name that leads elsewhere than is expected; an empty digest is for nowhere."""
    wanted = f"the name {short_repr(name)} to lead to {expected.hex()}" if expected else f"no name {short_repr(name)}"
    received = f"one that leads to {found.hex()}, its version {version}" if found else "a name that leads nowhere"
    text = f"Expected {wanted}. Received {received}: nothing was changed."
    return NameConflictError(text, name=name, found=found.hex() or ABSENT, version=version)


def check_room(size: int, held: int, budget: float, setting: str, holder: str) -> None:
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


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises OverloadedError or UnavailableError where the OSError of a disk is raised."""
    try:
        yield
    except ConvserveError:  # some of which are OSErrors too
        raise
    except OSError as error:
        log.error("the store: %s", error)
        raise _disk_error(error) from error


def _disk_error(error: OSError) -> ConvserveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"Expected room on the disk of --store. Received none: {error.strerror}. Delete some layers."
        return OverloadedError(text)
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        text = f"Expected a server that can open a file of its --store now. Received {error.strerror}: retry."
        return OverloadedError(text, retry_after_s=_RETRY_S)
    text = (
        f"Expected a --store that can be read and written. Received one that cannot be: {error.strerror}. "
        "Its operator has to mend it; the server's log says more."
    )
    return UnavailableError(text)
