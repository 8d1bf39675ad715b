"""Which layers names lead to, and led to before. Nothing here knows whether the layers are held, or any lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_VERSIONS = 1000
"""How many of the layers that a name has led to are remembered."""


@dataclass(frozen=True)
class NameVersions:
    """The layers that a name has led to, numbered from 1 on in the order in which it moved.

    Attributes:
        digests: Those of the versions, oldest first; the name leads to the last one.
        first: The number of the first of them. Above 1 where older ones are forgotten.
    """

    digests: tuple[bytes, ...]
    first: int = 1

    @property
    def digest(self) -> bytes:
        """The digest of the layer that the name leads to."""
        return self.digests[-1]

    @property
    def latest(self) -> int:
        """The number of the version that the name leads to."""
        return self.first + len(self.digests) - 1

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """Yields each version's number and digest, oldest first."""
        yield from enumerate(self.digests, start=self.first)

    def of(self, number: int) -> bytes | None:
        """Returns the digest of a version, or None."""
        return self.digests[number - self.first] if self.first <= number <= self.latest else None

    def moved_to(self, key: bytes) -> NameVersions:
        """Returns the versions of the name after it has moved to another layer."""
        kept = (*self.digests, key)[-MAX_VERSIONS:]
        return NameVersions(kept, self.latest + 2 - len(kept))


class LayerNames:
    """Names to digests, and back."""

    def __init__(self) -> None:
        """Starts without any."""
        self._versions: dict[str, NameVersions] = {}
        self._names: dict[bytes, set[str]] = {}

    def digest_of(self, name: str) -> bytes | None:
        """Returns the digest that a name leads to, or None."""
        found = self._versions.get(name)
        return None if found is None else found.digest

    def versions(self, name: str) -> NameVersions | None:
        """Returns the versions of a name, or None."""
        return self._versions.get(name)

    def all(self) -> tuple[str, ...]:
        """Returns all names, sorted."""
        return tuple(sorted(self._versions))

    def of(self, key: bytes) -> tuple[str, ...]:
        """Returns the names that lead to a layer, sorted."""
        return tuple(sorted(self._names.get(key, ())))

    def beginning_with(self, prefix: str) -> set[bytes]:
        """Returns the digests to which a name leads that begins so."""
        return {found.digest for name, found in self._versions.items() if name.startswith(prefix)}

    def digests(self) -> set[bytes]:
        """Returns the digests to which names lead."""
        return set(self._names)

    def add(self, name: str, versions: NameVersions) -> None:
        """Lets a name that led nowhere lead to the last of its versions."""
        self._versions[name] = versions
        self._names.setdefault(versions.digest, set()).add(name)

    def remove(self, name: str) -> bytes | None:
        """Removes a name; returns the digest that it led to if that has no name any more."""
        versions = self._versions.pop(name, None)
        if versions is None:
            return None
        key = versions.digest
        self._names[key].discard(name)
        if self._names[key]:
            return None
        del self._names[key]
        return key

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a name leads to a layer."""
        return key in self._names
