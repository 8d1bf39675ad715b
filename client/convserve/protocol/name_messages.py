"""Names as callers see them: their versions, what a move expects of one, and the messages of both. Nothing does I/O."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import DecodeError

from convserve.errors import InvalidRequestError, UnimplementedError, short_repr
from convserve.layers.layer import Layer
from convserve.protocol.results import reading_answers
from convserve.protocol.stored_layers import DIGEST_BYTES, StoredLayerBase, check_name
from convserve.v1 import layer_service_pb2

ABSENT = "absent"
"""What a caller expects of a name that there is not to be."""

MOVE_ID_BYTES = 16

Expect = StoredLayerBase | Layer | bytes | str | None
"""What must be at a name for it to move: a layer, its digest, or `ABSENT`; None for whatever is there."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class NameVersion:
    """A layer that a name leads or led to.

    Attributes:
        number: The version's number; each move of the name to another layer makes the next one.
        digest: The layer's digest.
        moved_at: When the name moved there, by the server's clock, in UTC; None where the server has not kept it.
        is_stored: Whether the layer is stored now, so that the name can move back to it.
        is_current: Whether the name leads there now.
    """

    number: int
    digest: bytes
    moved_at: datetime | None
    is_stored: bool
    is_current: bool


def checked_digest(value: object, field: str = "digest", expected: str = "") -> bytes:
    """Returns a digest: that of a layer, 32 bytes, or what 64 hexadecimal digits say.

    Raises InvalidRequestError for the field if it is something else.
    """
    if isinstance(value, StoredLayerBase) or (isinstance(value, Layer) and value.kernel is not None):
        return value.digest
    if isinstance(value, str) and _HEX_DIGEST.fullmatch(value):
        return bytes.fromhex(value)
    if isinstance(value, bytes) and len(value) == DIGEST_BYTES:
        return value
    expected = expected or f"a digest: {DIGEST_BYTES} bytes, or as {2 * DIGEST_BYTES} hexadecimal digits"
    raise InvalidRequestError.for_field(field, expected, short_repr(value))


def name_move(name: Any, expect: Expect) -> layer_service_pb2.NameMove:
    """Returns the message of a move that no other has, and that stays the same however often it is sent.

    Raises InvalidRequestError for what is no name, or nothing that can be expected of one.
    """
    check_name(name)
    message = layer_service_pb2.NameMove(name=name, move_id=os.urandom(MOVE_ID_BYTES))
    if isinstance(expect, str) and expect == ABSENT:
        message.absent = True
    elif expect is not None:
        expected = f"a layer, its digest (32 bytes or 64 hexadecimal digits), or {ABSENT!r}"
        message.digest = checked_digest(expect, "expect", expected)
    return message


def move_request(name: Any, layer: Any, digest: Any, version: Any, expect: Expect) -> layer_service_pb2.MoveNameRequest:
    """Returns the message that moves a name to a stored layer: given, or by another name, a digest, or a version.

    Raises InvalidRequestError unless there is one of them.
    """
    request = layer_service_pb2.MoveNameRequest(move=name_move(name, expect))
    places = {"layer": layer, "digest": digest, "version": version}
    given = [word for word, value in places.items() if value is not None]
    if len(given) != 1:
        expected = "one place to move to: a layer, another name, digest= or version="
        raise InvalidRequestError.for_field("layer", expected, ", ".join(given) or "none")
    if version is not None:
        if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < 2**63:
            raise InvalidRequestError.for_field("version", "the number of a version", short_repr(version))
        request.version = version
    elif isinstance(layer, str) and layer.isprintable():
        request.layer.name = layer
    elif layer is None or isinstance(layer, StoredLayerBase):
        request.layer.digest = checked_digest(digest) if layer is None else layer.digest
    else:
        raise InvalidRequestError.for_field("layer", "a stored layer, or the name of one", short_repr(layer))
    return request


def away_request(name: Any, expect: Expect) -> layer_service_pb2.MoveNameRequest:
    """Returns the message that moves a name away; raises InvalidRequestError as `name_move`."""
    return layer_service_pb2.MoveNameRequest(move=name_move(name, expect), away=True)


def versions_request(name: Any) -> layer_service_pb2.ListNameVersionsRequest:
    """Returns the message that asks for a name's versions; raises InvalidRequestError for what is no name."""
    check_name(name)
    return layer_service_pb2.ListNameVersionsRequest(name=name)


@reading_answers
def versions_of(answer: layer_service_pb2.ListNameVersionsResponse) -> list[NameVersion]:
    """Returns the versions that a server lists; raises InternalError for a list that cannot be."""
    listed = answer.versions
    numbers = [version.version for version in listed]
    if not listed or numbers[0] < 1 or any(after != before + 1 for before, after in itertools.pairwise(numbers)):
        raise DecodeError("versions without consecutive numbers")
    versions = []
    for version in listed:
        if len(version.digest) != DIGEST_BYTES:
            raise DecodeError(f"a digest of {len(version.digest)} bytes")
        try:
            moved_at = _EPOCH + timedelta(microseconds=version.moved_us) if version.moved_us else None
        except OverflowError:
            raise DecodeError("a time that no calendar has") from None
        current = version.version == numbers[-1]
        versions.append(NameVersion(version.version, version.digest, moved_at, version.stored, current))
    return versions


def check_heeded(expect: Expect, version: int) -> None:
    """Checks that the server that stored a layer has heeded what was expected of its name.

    Raises UnimplementedError if it is too old to know of that; it has then moved no name.
    """
    if expect is not None and not version:
        raise UnimplementedError(
            "Expected a server that knows expect=. Received the answer of an older one: it has stored the layer, and "
            "moved no name."
        )
