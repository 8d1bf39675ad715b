"""Which layers are pinned, and by which names. Nothing here knows whether the layers are held, or any lock."""

from __future__ import annotations

from collections import Counter


class LayerPins:
    """Digests of layers that are not to leave the memory, each with the names that hold it there."""

    def __init__(self) -> None:
        """Starts without any."""
        self._of_name: dict[str, set[bytes]] = {}
        # By how many names. An eviction asks for each layer whether it is held, and there may be as many names.
        self._held: Counter[bytes] = Counter()

    def add(self, name: str, key: bytes) -> None:
        """Lets a name hold a layer."""
        keys = self._of_name.setdefault(name, set())
        if key not in keys:
            keys.add(key)
            self._held[key] += 1

    def remove(self, name: str) -> set[bytes]:
        """Ends what a name holds; returns the digests that no name holds any more."""
        keys = self._of_name.pop(name, set())
        self._held.subtract(keys)
        ended = {key for key in keys if not self._held[key]}
        for key in ended:
            del self._held[key]
        return ended

    def forget(self, key: bytes) -> bool:
        """Ends all that holds a layer; returns whether anything did."""
        held = self._held.pop(key, 0) > 0
        for keys in self._of_name.values() if held else ():
            keys.discard(key)
        return held

    def digests(self) -> set[bytes]:
        """Returns the digests that are held."""
        return set(self._held)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a name holds a layer."""
        return key in self._held
