"""Names of layers: where they lead, where they led before, and which layers they keep in memory. It knows no lock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from convserve.errors import InvalidRequestError, OverloadedError
from convserve_server.layer_store.errors import name_conflict

MAX_VERSIONS = 1000
"""How many of the layers that a name has led to are remembered."""
MAX_NAMES_OF_A_LAYER = 100
MAX_NAMES = 100_000
MAX_ALL_VERSIONS = 2 * MAX_NAMES
"""How many versions all names have together, before those that move forget one for each new one."""


class Move(NamedTuple):
    """A caller's wish to move a name."""

    name: str
    expect: bytes | None = None  # the digest to which the name must lead; empty: there must be no such name
    id: bytes = b""  # that all attempts to make this move have, and no other move; empty: they are not known by it


NO_MOVE = Move("")
"""The move of a layer that is put without a name."""


class Version(NamedTuple):
    """A move of a name to a layer that was made."""

    digest: bytes
    moved_us: int = 0  # since 1970; 0 where it is not known
    move_id: bytes = b""  # the move's


@dataclass(frozen=True)
class NameVersions:
    """The layers that a name has led to, numbered from 1 on in the order in which it moved."""

    versions: tuple[Version, ...]  # oldest first; the name leads to the layer of the last one
    first: int = 1  # the number of the first of them, above 1 where older ones are forgotten

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The digests of the layers, oldest first."""
        return tuple(version.digest for version in self.versions)

    @property
    def digest(self) -> bytes:
        """The digest of the layer that the name leads to."""
        return self.versions[-1].digest

    @property
    def latest(self) -> int:
        """The number of the version that the name leads to."""
        return self.first + len(self.versions) - 1

    def of(self, number: int) -> bytes | None:
        """Returns the digest of a version, or None."""
        return self.versions[number - self.first].digest if self.first <= number <= self.latest else None

    def made_by(self, move: Move) -> int | None:
        """Returns the number of the version that a move made when it was asked for before, or None."""
        numbered = enumerate(self.versions, self.first) if move.id else ()
        return next((number for number, version in numbered if version.move_id == move.id), None)

    def moved_to(self, version: Version, most: int = MAX_VERSIONS) -> NameVersions:
        """Returns the versions of the name after it has moved to another layer, `most` of them."""
        kept = (*self.versions, version)[-most:]
        return NameVersions(kept, self.latest + 2 - len(kept))


class LayerNames:
    """Names to digests and back, and the layers that they keep in memory: pinned ones, and if so asked named ones."""

    def __init__(self, size_of: Callable[[bytes], int], *, keep_named: bool) -> None:
        """Starts without any; `keep_named`: whether a name keeps the layer in memory that it leads to."""
        self._size_of, self._keep_named = size_of, keep_named
        self._versions: dict[str, NameVersions] = {}
        self._names: dict[bytes, set[str]] = {}
        self._pins: dict[str, set[bytes]] = {}
        # How often names keep each layer: an eviction asks this for every layer, and there may be as many names.
        self._holds: Counter[bytes] = Counter()
        self.kept_bytes = 0  # of the layers that must stay in memory
        self.versions_of_all = 0

    def digest_of(self, name: str) -> bytes | None:
        """Returns the digest that a name leads to, or None."""
        versions = self._versions.get(name)
        return None if versions is None else versions.digest

    def versions(self, name: str) -> NameVersions | None:
        """Returns the versions of a name, or None."""
        return self._versions.get(name)

    def all(self) -> tuple[str, ...]:
        """Returns all names, sorted."""
        return tuple(sorted(self._versions))

    def of(self, key: bytes) -> tuple[str, ...]:
        """Returns the names that lead to a layer, sorted."""
        return tuple(sorted(self._names.get(key, ())))

    def starting_with(self, prefix: str) -> set[bytes]:
        """Returns the digests to which a name leads that starts so."""
        return {versions.digest for name, versions in self._versions.items() if name.startswith(prefix)}

    def moved(self, move: Move, key: bytes) -> NameVersions | None:
        """Returns the versions that a name would have after a move; None if it leads there, or the move was made.

        Raises NameConflictError if it leads elsewhere than the move expects, InvalidRequestError if the layer has as
        many names as it may, or OverloadedError if there are too many.
        """
        before = self._versions.get(move.name)
        if before is not None and (before.digest == key or before.made_by(move)):
            return None
        self.check(move)
        if len(self._names.get(key, ())) >= MAX_NAMES_OF_A_LAYER:
            expected = f"a name for a layer that has fewer than {MAX_NAMES_OF_A_LAYER}"
            raise InvalidRequestError.for_field("name", expected, "one more: delete some of them")
        version = Version(key, time.time_ns() // 1000, move.id)
        if before is not None:
            is_full = self.versions_of_all >= MAX_ALL_VERSIONS
            return before.moved_to(version, len(before.versions) if is_full else MAX_VERSIONS)
        if len(self._versions) >= MAX_NAMES:
            raise OverloadedError(f"Expected at most {MAX_NAMES} names of layers. Received one more: delete some.")
        return NameVersions((version,))

    def check(self, move: Move) -> None:
        """Raises NameConflictError if a name leads elsewhere than a move expects."""
        before = self._versions.get(move.name)
        found, version = (b"", 0) if before is None else (before.digest, before.latest)
        if move.expect not in (None, found):
            raise name_conflict(move.name, move.expect, found, version)

    def set(self, name: str, versions: NameVersions | None) -> None:
        """Lets a name lead to the last of its versions; None removes it, and ends its pins."""
        before = self._versions.get(name)  # which stays until it has another: a name always leads somewhere
        if before is not None:
            self.versions_of_all -= len(before.versions)
            names = self._names[before.digest]
            names.remove(name)
            if not names:
                del self._names[before.digest]
            if self._keep_named:
                self._release(before.digest)
        if versions is None:
            self.unpin(name)
            self._versions.pop(name, None)
            return
        self.versions_of_all += len(versions.versions)
        self._versions[name] = versions
        self._names.setdefault(versions.digest, set()).add(name)
        if self._keep_named:
            self._hold(versions.digest)

    def pin(self, name: str, key: bytes) -> None:
        """Keeps a layer, which is in memory, until the name is unpinned or removed."""
        keys = self._pins.setdefault(name, set())
        if key not in keys:
            keys.add(key)
            self._hold(key)

    def unpin(self, name: str) -> None:
        """Ends a name's pins."""
        for key in self._pins.pop(name, ()):
            self._release(key)

    def unpin_layer(self, key: bytes) -> None:
        """Ends all pins of a layer."""
        for keys in self._pins.values() if self.keeps(key) else ():
            if key in keys:
                keys.remove(key)
                self._release(key)

    def keeps(self, key: bytes) -> bool:
        """Returns whether a layer must stay in memory."""
        return key in self._holds

    def freed_by_moving(self, name: str) -> int:
        """Returns the bytes of the layer that nothing but this name keeps."""
        key = self.digest_of(name)
        return self._size_of(key) if self._keep_named and key is not None and self._holds[key] == 1 else 0

    def _hold(self, key: bytes) -> None:
        if key not in self._holds:
            self.kept_bytes += self._size_of(key)
        self._holds[key] += 1

    def _release(self, key: bytes) -> None:
        self._holds[key] -= 1
        if not self._holds[key]:
            del self._holds[key]
            self.kept_bytes -= self._size_of(key)
