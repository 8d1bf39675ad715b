"""Where a store keeps layers and names beside its memory: by itself nowhere; in a folder or bucket, what both share.

Who has a folder is its only server, so that what it knows is how it is. A bucket has several servers: there a name is
read anew before it is moved or when what is known of it is old, and a move is refused if another one came before.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable

from convserve.layers.layer import Layer
from convserve_server.layer_store.cache import size_of
from convserve_server.layer_store.errors import check_room
from convserve_server.layer_store.names import NameVersions
from convserve_server.layer_store.stored_layer import DurableUsage, LayerHead


class Storage:
    """Layers and names, and in memory what is known of them. This one keeps none; others say how they do the same.

    Its methods may be called from any thread, those that change or read a layer or name only under its `lock`. Those
    that read or write raise OverloadedError if there is no room, or UnavailableError if what holds them is away.
    """

    is_durable = False
    """Whether it keeps what it is given."""
    is_shared = False
    """Whether other servers change it too."""
    _holder = ""

    def __init__(self, budget: float = math.inf) -> None:
        self._budget = budget
        self._lock = threading.Lock()  # of the tables; no thread holds it while anything slow works
        self._locks: weakref.WeakValueDictionary[bytes | str, threading.RLock] = weakref.WeakValueDictionary()
        self._sizes: dict[bytes, int] = {}  # of the layers; contents are checked when they are read
        self._total = 0  # of the sizes, with what is being written
        self._heads: dict[bytes, LayerHead] = {}

    def lock(self, reference: bytes | str) -> threading.RLock:
        """Returns the lock of a layer, by its digest, or of a name. Who needs both takes the layer's first."""
        if not self.is_durable:
            reference = ""  # one for all: the memory's layers make room for each other, and nothing is slow
        with self._lock:
            return self._locks.setdefault(reference, threading.RLock())

    def keys(self) -> set[bytes]:
        """Returns the digests of the layers, as far as they are known."""
        with self._lock:
            return set(self._sizes)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether there is a layer with this digest."""
        return key in self._sizes

    def check_room(self, size: int) -> None:
        """Checks that there is room for a layer of so many bytes. Raises TooLargeError or OverloadedError."""
        check_room(size, self._total, self._budget, "store-bytes", self._holder)

    def write(self, layer: Layer) -> None:
        """Stores a layer, durable when this returns. Raises TooLargeError or OverloadedError as `check_room`."""
        key, size = layer.digest, size_of(layer)  # which is about the file's
        with self._lock:
            self.check_room(size)
            self._total += size
        written = 0
        try:
            written = self._write(layer, key)
        finally:
            with self._lock:
                self._total -= size
                if written:
                    self._set_size(key, written)

    def head(self, key: bytes) -> LayerHead | None:
        """Returns what is written of a layer before its weights; None if it is damaged or missing. It needs no lock."""
        head = self._heads.get(key)
        if head is None and key in self:
            head = self._read_head(key)
            with self._lock:
                if head is not None and key in self._sizes:
                    self._heads[key] = head
        return head

    def _set_size(self, key: bytes, size: int) -> None:
        """Notes a layer that is there, under the tables' lock."""
        self._total += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._total -= self._sizes.pop(key, 0)
            self._heads.pop(key, None)

    # What a folder and a bucket do in their ways

    def read(self, key: bytes) -> Layer | None:
        """Returns a layer, verified, or None; a damaged one is reported."""
        return None

    def delete(self, key: bytes) -> None:
        """Removes a layer, to which no name leads."""

    def write_name(self, name: str, versions: NameVersions | None) -> bool:
        """Lets a name lead to the last of its versions, or nowhere, durably; False if another server moved it first."""
        return True

    def names(self) -> Iterable[tuple[str, NameVersions]]:
        """Returns every name with its versions."""
        return ()

    def _write(self, layer: Layer, key: bytes) -> int:
        """Writes a layer whole or not at all; returns the size."""
        return 0

    def _read_head(self, key: bytes) -> LayerHead | None:
        return None

    # What other servers do. Nobody else has a folder.

    def is_fresh(self, name: str, *, latest: bool) -> bool:
        """Returns whether what is known of a name is not too old to be used, or is the `latest`."""
        return True

    def read_name(self, name: str, known: NameVersions | None) -> NameVersions | None:
        """Returns the versions of a name, of which some are known, read under its lock; None if there is none."""
        return known

    def moved_names(self, *, latest: bool) -> list[str]:
        """Returns the names that others have moved, or moved away, since they were read."""
        return []

    def is_there(self, key: bytes) -> bool:
        """Returns whether a layer that is known is there still."""
        return True

    def look(self, *, latest: bool = False) -> None:
        """Learns which layers others have stored or deleted."""

    def keep(self, key: bytes, layer: Layer | None) -> bool:
        """Stores a layer again, if it is given, that others deleted or replaced; returns whether it is there."""
        return True

    def restore(self, key: bytes) -> bool:
        """Takes back a layer that was deleted, as a name leads there; returns whether it could."""
        return False

    def deleted(self) -> list[tuple[bytes, str]]:
        """Returns layers that were deleted long ago and are kept still, each with where."""
        return []

    def bury(self, place: str) -> None:
        """Removes what is kept of a deleted layer."""

    def usage(self) -> DurableUsage | None:
        """Returns what was asked of a remote store."""
        return None
