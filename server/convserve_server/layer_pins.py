"""Which layers are pinned, and by which names. Nothing here knows whether the layers are held, or any lock."""

from __future__ import annotations


class LayerPins:
    """Digests of layers that are not to leave the memory, each with the names that hold it there."""

    def __init__(self) -> None:
        """Starts without any."""
        self._of_name: dict[str, set[bytes]] = {}

    def add(self, name: str, key: bytes) -> None:
        """Lets a name hold a layer."""
        self._of_name.setdefault(name, set()).add(key)

    def remove(self, name: str) -> set[bytes]:
        """Ends what a name holds; returns the digests that no name holds any more."""
        return {key for key in self._of_name.pop(name, ()) if key not in self}

    def forget(self, key: bytes) -> bool:
        """Ends all that holds a layer; returns whether anything did."""
        held = key in self
        for keys in self._of_name.values():
            keys.discard(key)
        return held

    def digests(self) -> set[bytes]:
        """Returns the digests that are held."""
        return set().union(*self._of_name.values())

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a name holds a layer."""
        return any(key in keys for keys in self._of_name.values())
