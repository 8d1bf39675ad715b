"""The layer store: layers by digest, names that lead to them, a budget of memory, and a folder where there is one.

Without a folder the memory is the store: what was used longest ago goes first when the budget is spent, and layers with
a name stay. With a folder every layer stays on the disk, and the memory holds those used last, and those that are
pinned. A layer whose file is missing or quarantined is not held, but its names are kept: they lead to it again once it
is put again.

No thread holds the tables' lock while the disk works. Each layer's file and each name's has a lock for that, so a call
waits for a slow disk only if it asks for a layer or name that the disk works at.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from convserve.errors import InvalidRequestError, LayerNotFoundError
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import check_name
from convserve_server.layer_store.cache import LayerCache, at_rest, size_of
from convserve_server.layer_store.errors import check_room, name_not_found, not_found
from convserve_server.layer_store.files import LayerFiles
from convserve_server.layer_store.name_moves import NameMoves
from convserve_server.layer_store.names import LayerNames, Move, NameVersions
from convserve_server.layer_store.stored_layer import LayerHead, Reference, StoredLayer, StoreUsage

log = logging.getLogger("convserve")

_MEMORY = "layer-memory-bytes"
_NO_MOVE = Move("")


class LayerStore:
    """Layers by digest and by name. Its methods may be called from any thread."""

    def __init__(self, memory_bytes: int, disk_bytes: int = 0, folder: Path | None = None) -> None:
        """Opens the store with its budgets, in memory alone without a folder. Raises OSError if that cannot be used."""
        self._lock = threading.RLock()  # of the tables; taken after a layer's and a name's, never held by a disk
        self._memory = memory = LayerCache[bytes](memory_bytes)
        self._files = LayerFiles(folder, disk_bytes) if folder is not None else None
        self._names = LayerNames(lambda key: size_of(memory[key]), keep_named=self._files is None)
        self._moves = NameMoves(self._names, self._files, self._lock)
        for name, versions in self._files.names() if self._files else ():
            self._names.move(name, versions)
            if versions.digest not in self:
                self._report_lost(versions.digest, name)

    # Reading

    def layer(self, reference: Reference) -> Layer:
        """Returns a layer with its weights, read-only. Raises LayerNotFoundError if there is none."""
        key = self._digest(reference)
        layer = self.find(key)
        if layer is None:
            raise not_found(key)
        return layer

    def find(self, key: bytes) -> Layer | None:
        """Returns the layer with this digest, or None."""
        layer = self._recall(key)
        if layer is None and self._files and key in self._files:
            with self._locked(key):
                layer = self._recall(key) or self._read(key)
                if layer is not None:
                    self._remember(key, layer)
        return layer

    def describe(self, reference: Reference) -> StoredLayer:
        """Returns what is known of a layer, or raises LayerNotFoundError. It neither reads nor verifies weights."""
        key = self._digest(reference)
        layer = self._memory.get(key)
        head = LayerHead.of(layer) if layer else self._files.head(key) if self._files else None
        if head is None:
            with self._locked(key):  # a damaged file is quarantined
                layer = self._memory.get(key) or self._read(key)
            if layer is None:
                raise not_found(key)
            head = LayerHead.of(layer)
        return StoredLayer(key, self._names_of(key), *head)

    def digest_of(self, name: str) -> bytes:
        """Returns the digest that a name leads to. Raises LayerNotFoundError if it leads nowhere."""
        key = self._names.digest_of(name)
        if key is None or key not in self:
            raise name_not_found(name, key)
        return key

    def names(self) -> tuple[str, ...]:
        """Returns all names, sorted, of lost layers too."""
        with self._lock:
            return self._names.all()

    @property
    def versions_of_all(self) -> int:
        """How many versions all names have together."""
        return self._names.versions_of_all

    def versions(self, name: str) -> NameVersions:
        """Returns the layers that a name has led to, some perhaps not stored any more, or raises LayerNotFoundError."""
        return self._moves.versions(name)

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Returns those digests that are not stored, in their order."""
        return [key for key in keys if key not in self]

    def page(self, prefix: str, after: bytes, size: int) -> list[StoredLayer]:
        """Returns up to `size` layers by their digests: those `after` one that have a name with this prefix, if any."""
        keys = self._keys()
        if prefix:
            with self._lock:
                keys &= self._names.starting_with(prefix)
        layers: list[StoredLayer] = []
        for key in sorted(key for key in keys if key > after):
            if len(layers) == size:
                break
            with suppress(LayerNotFoundError):  # it was deleted or quarantined just now
                layers.append(self.describe(key))
        return layers

    def usage(self) -> StoreUsage:
        """Returns what the store holds."""
        return StoreUsage(len(self._keys()), self._memory.size, self._memory.evictions)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a layer with this digest is stored."""
        return key in self._memory or (self._files is not None and key in self._files)

    # Changing

    def check_room(self, size: int, name: str = "") -> None:
        """Checks that a layer of so many bytes may be put; without a folder, layers with a name are never evicted.

        The layer that `name` is taken from may be, if it has no other. Raises TooLargeError if the layer is larger than
        the whole store, or OverloadedError if there is no room and nothing may be evicted.
        """
        if self._files:
            self._files.check_room(size)
            return
        with self._lock:
            held = self._names.kept_bytes - self._names.freed_by_moving(name)
            check_room(size, held, self._memory.budget, _MEMORY, "the layers with a name")

    def check_move(self, move: Move, key: bytes) -> None:
        """Checks that a name may move to a layer, as `put` and `move` do. Raises what `LayerNames.moved` does."""
        self._moves.is_to_make(move, key)

    def put(self, layer: Layer, name: str | Move = "", expected_digest: bytes = b"") -> tuple[StoredLayer, bool, int]:
        """Stores a layer, and lets a name lead to it; returns it, whether it was there before, and the name's version.

        The store keeps the layer's own weights if they are aligned: nobody may change them any more. Raises what
        `check_room` and `check_move` do, and InvalidRequestError for a wrong name, or another digest than expected.
        """
        move = name if isinstance(name, Move) else Move(name)
        if move.name:
            check_name(move.name)
        layer = at_rest(layer)
        key = layer.digest
        if expected_digest and key != expected_digest:
            expected = f"what arrives to have the digest {expected_digest.hex()}"
            raise InvalidRequestError.for_field("expected_digest", expected, f"a layer with digest {key.hex()}")
        with self._locked(key), self._moves.locked(move.name) if move.name else nullcontext():
            moves = move if move.name and self._moves.is_to_make(move, key) else _NO_MOVE
            existing = self.find(key)
            if existing is None:
                if self._files:
                    self._files.write(layer, key, size_of(layer))
                else:
                    self.check_room(size_of(layer), moves.name)
                self._remember(key, layer, moves)
            version = self._moves.make(move, key) if move.name else 0
            stored = StoredLayer(key, self._names_of(key), *LayerHead.of(existing or layer))
            return stored, existing is not None, version

    def move(self, move: Move, to: Reference | int) -> tuple[StoredLayer, int]:
        """Moves a name to a stored layer, or to that of one of its versions; returns it and the number of the new one.

        A move that was made before is not made again. Raises LayerNotFoundError if there is no such layer or version,
        InvalidRequestError for a wrong name, and what `check_move` does.
        """
        check_name(move.name)
        if made := self.made(move):
            return made
        key = self._moves.version(move.name, to) if isinstance(to, int) else self._digest(to)
        with self._locked(key):
            layer = self.describe(key)
            version = self._moves.make(move, key)
            # Another attempt may have made it just now, when the other name led elsewhere.
            return self.made(move) or (layer._replace(names=self._names_of(key)), version)

    def made(self, move: Move) -> tuple[StoredLayer, int] | None:
        """Returns the layer and the version of a move that was made; None if it was not, or has no id.

        Raises LayerNotFoundError if the layer is not stored any more.
        """
        made = self._moves.made(move)
        return None if made is None else (self.describe(made[0]), made[1])

    def remove_name(self, move: Move) -> None:
        """Removes a name, and leaves its layer. Raises LayerNotFoundError if there is none, or NameConflictError."""
        self._moves.remove_expected(move)

    def delete(self, reference: Reference) -> None:
        """Removes a layer and its names; or a name, and the layer that only it leads to. LayerNotFoundError if none."""
        if not isinstance(reference, str):
            with self._locked(reference):
                if reference not in self:
                    raise not_found(reference)
                self._forget(reference)
            return
        # The name of a layer that is lost can be deleted too.
        key = self.versions(reference).digest
        with self._locked(key):
            if self._names_of(key) == (reference,):
                self._forget(key)
                return
            is_gone = self._moves.remove(reference, key)
        if not is_gone:  # it was moved meanwhile
            self.delete(reference)

    def pin(self, name: str) -> None:
        """Keeps the layer that a name leads to now in memory, until `unpin`, or until the name or layer is deleted.

        Raises LayerNotFoundError if it leads nowhere, or OverloadedError without room beside what is pinned already.
        """
        key = self.digest_of(name)
        with self._locked(key):
            if (layer := self._recall(key) or self._read(key)) is None:
                raise not_found(key)
            with self._lock:
                if self._names.versions(name) is None:  # it was deleted meanwhile
                    raise name_not_found(name)
                if not self._names.keeps(key):
                    kept = self._names.kept_bytes
                    check_room(size_of(layer), kept, self._memory.budget, _MEMORY, "the layers that are pinned")
                self._remember(key, layer)
                self._names.pin(name, key)

    def unpin(self, name: str) -> None:
        """Ends what `pin` began for a name, whichever layers it has led to since."""
        with self._lock:
            self._names.unpin(name)

    # Of a layer or a name whose lock is held

    def _remember(self, key: bytes, layer: Layer, move: Move = _NO_MOVE) -> None:
        """Holds a layer in memory, from which others may have to go."""
        with self._lock:
            if key not in self._memory:
                self._memory.add(key, layer)
                if move.name and not self._files:
                    self._moves.make(move, key)  # first: what had the name may have to make room
                self._memory.evict(lambda other: self._names.keeps(other) or (other == key and not self._files))

    def _recall(self, key: bytes) -> Layer | None:
        """Returns a layer that is in memory, and makes it the last used."""
        with self._lock:
            return self._memory.use(key)

    def _read(self, key: bytes) -> Layer | None:
        """Returns a layer from its file, verified; what was quarantined is not held any more."""
        if self._files is None or key not in self._files:
            return None
        layer = self._files.read(key)
        if layer is None:
            self._report_lost(key, *self._names_of(key))
        return layer

    def _forget(self, key: bytes) -> None:
        for name in self._names_of(key):
            self._moves.remove(name, key)
        if self._files and key in self._files:
            self._files.delete(key)
        with self._lock:
            self._names.unpin_layer(key)
            self._memory.remove(key)

    def _locked(self, key: bytes) -> Any:
        """Returns the lock of a layer's file; without a folder, where nothing is slow, the tables' own."""
        return self._lock if self._files is None else self._files.lock(key)

    def _keys(self) -> set[bytes]:
        with self._lock:
            return self._files.keys() if self._files else set(self._memory)

    def _names_of(self, key: bytes) -> tuple[str, ...]:
        with self._lock:
            return self._names.of(key)

    def _digest(self, reference: Reference) -> bytes:
        return self.digest_of(reference) if isinstance(reference, str) else reference

    def _report_lost(self, key: bytes, *names: str) -> None:
        if names:
            log.error("the layer %s is lost, until it is put again; so lead nowhere: %s", key.hex(), ", ".join(names))
