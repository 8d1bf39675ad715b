"""One name in one file: JSON, as a folder and a bucket have it.

    {"name": ..., "digest": ..., "before": [...], "first": ..., "moves": [...]}

where it leads, the digests where it led before, the version's number of the first of them all, and for each of them all
when it moved there, and the id of that move; or of one that was removed, where its file has to stay,

    {"name": ..., "removed": ...}

with random digits, so that no two are alike.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from typing import Any

from convserve_server.layer_store.names import MAX_VERSIONS, NameVersions, Version

MAX_BYTES = 2**12 + 2**7 * MAX_VERSIONS
"""What a name's file takes at most."""


def path_of(name: str) -> str:
    """Returns how a name's file is called: hashed, so that no name leads out of its folder or is too long for it."""
    return f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def encode(name: str, versions: NameVersions | None) -> bytes:
    """Returns the contents of a name's file; without versions of one that was removed."""
    if versions is None:
        return json.dumps({"name": name, "removed": os.urandom(16).hex()}).encode()
    *before, digest = (key.hex() for key in versions.digests)
    moves = [[version.moved_us, version.move_id.hex()] for version in versions.versions]
    entry = {"name": name, "digest": digest, "before": before, "first": versions.first, "moves": moves}
    return json.dumps(entry).encode()


def decode(content: bytes, path: str) -> tuple[str, NameVersions | None]:
    """Returns a name and its versions, if it was not removed.

    Raises a `layer_file.DAMAGE` for what makes no sense, or has another's path.
    """
    entry = json.loads(content.decode())
    name: str = entry["name"]
    if path != path_of(name):
        raise ValueError("its contents don't fit its name")
    return name, None if "removed" in entry else _versions_of(entry)


def _versions_of(entry: dict[str, Any]) -> NameVersions:
    # What was written before names had versions has one; before moves were noted, none of these.
    first = entry.get("first", 1)
    if not isinstance(first, int) or isinstance(first, bool) or first < 1:
        raise ValueError("its versions have no number")
    digests = [bytes.fromhex(digest) for digest in (*entry.get("before", ()), entry["digest"])]
    moves = entry.get("moves") or [[0, ""]] * len(digests)
    versions = tuple(
        Version(digest, operator.index(moved_us), bytes.fromhex(move_id))
        for digest, (moved_us, move_id) in zip(digests, moves, strict=True)
    )
    if any(len(version.digest) != 32 or not 0 <= version.moved_us < 2**63 for version in versions):
        raise ValueError("its versions make no sense")
    return NameVersions(versions, first)
