"""Which names lead to which layer. Nothing here knows whether the layers are held, or any lock."""

from __future__ import annotations


class LayerNames:
    """Names to digests, and back."""

    def __init__(self) -> None:
        """Starts without any."""
        self._leads_to: dict[str, bytes] = {}
        self._names: dict[bytes, set[str]] = {}

    def digest_of(self, name: str) -> bytes | None:
        """Returns the digest that a name leads to, or None."""
        return self._leads_to.get(name)

    def of(self, key: bytes) -> tuple[str, ...]:
        """Returns the names that lead to a layer, sorted."""
        return tuple(sorted(self._names.get(key, ())))

    def beginning_with(self, prefix: str) -> set[bytes]:
        """Returns the digests to which a name leads that begins so."""
        return {key for name, key in self._leads_to.items() if name.startswith(prefix)}

    def digests(self) -> set[bytes]:
        """Returns the digests to which names lead."""
        return set(self._names)

    def add(self, name: str, key: bytes) -> None:
        """Lets a name that led nowhere lead to a layer."""
        self._leads_to[name] = key
        self._names.setdefault(key, set()).add(name)

    def remove(self, name: str) -> bytes | None:
        """Removes a name; returns the digest that it led to if that has no name any more."""
        key = self._leads_to.pop(name, None)
        if key is None:
            return None
        self._names[key].discard(name)
        if self._names[key]:
            return None
        del self._names[key]
        return key

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a name leads to a layer."""
        return key in self._names
