"""The layer store: layers by digest, names that lead to them, a budget of memory, and a folder or bucket if any.

By itself the memory is the store: what was used longest ago goes first when the budget is spent, and layers with a name
stay. With a folder or a bucket every layer stays there, and the memory holds those used last, and those that are
pinned. A layer whose file is missing or quarantined is not held, but its names are kept: they lead to it again once it
is put again.

No thread holds the tables' lock while a disk or bucket works. Each layer and each name has a lock for that, so a call
waits for a slow disk only if it asks for a layer or name that the disk works at.

Other servers may share a bucket. Between a check and what follows from it they do what they do, so that a check comes
again afterwards: who lets a name lead to a layer then sees that the layer is still there, or stores it again; and who
has deleted a layer, of which a copy is kept for a while, then sees that no name leads there, or takes it back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from convserve.errors import InvalidRequestError, LayerNotFoundError, NameConflictError
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import check_name
from convserve_server.layer_store.cache import LayerCache, at_rest, size_of
from convserve_server.layer_store.durable.storage import Storage
from convserve_server.layer_store.errors import check_room, name_not_found, not_found
from convserve_server.layer_store.name_moves import NameMoves
from convserve_server.layer_store.names import NO_MOVE, LayerNames, Move, NameVersions
from convserve_server.layer_store.stored_layer import LayerHead, Reference, StoredLayer, StoreUsage

log = logging.getLogger("convserve")

_MEMORY = "layer-memory-bytes"


class LayerStore:
    """Layers by digest and by name. Its methods may be called from any thread."""

    def __init__(self, memory_bytes: int, storage: Storage | None = None) -> None:
        """Opens the store with its budget of memory, and what makes it durable, if anything does."""
        self._lock = threading.RLock()  # of the tables; taken after a layer's and a name's, never held by a disk
        self._memory = memory = LayerCache[bytes](memory_bytes)
        self._storage = storage = storage or Storage()
        self._names = LayerNames(lambda key: size_of(memory[key]), keep_named=not storage.is_durable)
        self._moves = NameMoves(self._names, storage, self._lock)
        for name, versions in storage.names():
            self._names.set(name, versions)
            if versions.digest not in self:
                self._report_lost(versions.digest, name)

    @property
    def is_shared(self) -> bool:
        """Whether other servers store and delete its layers too."""
        return self._storage.is_shared

    # Reading

    def layer(self, reference: Reference) -> Layer:
        """Returns a layer with its weights, read-only. Raises LayerNotFoundError if there is none."""
        key = self._digest(reference)
        layer = self.find(key)
        if layer is None and isinstance(reference, str):  # the name may lead elsewhere by now
            self._moves.see(reference, latest=True)
            key = self._digest(reference)
            layer = self.find(key)
        if layer is None:
            raise not_found(key)
        return layer

    def find(self, key: bytes) -> Layer | None:
        """Returns the layer with this digest, or None."""
        layer = self._recall(key)
        if layer is None and key in self._storage:
            with self._storage.lock(key):
                layer = self._recall(key) or self._read(key)
                if layer is not None:
                    self._remember(key, layer)
        return layer

    def describe(self, reference: Reference) -> StoredLayer:
        """Returns what is known of a layer, or raises LayerNotFoundError. It neither reads nor verifies weights."""
        key = self._digest(reference)
        layer = self._memory.get(key)
        head = LayerHead.of(layer) if layer else self._storage.head(key)
        if head is None:
            layer = self.layer(reference)  # a damaged file is quarantined
            key, head = layer.digest, LayerHead.of(layer)
        return StoredLayer(key, self._names_of(key), *head)

    def digest_of(self, name: str) -> bytes:
        """Returns the digest that a name leads to. Raises LayerNotFoundError if it leads nowhere."""
        self._moves.see(name)
        key = self._names.digest_of(name)
        if key is not None and key not in self:
            self._moves.see(name, latest=True)
            key = self._names.digest_of(name)
        if key is None or (key not in self and not self._is_restored(key)):
            raise name_not_found(name, key)
        return key

    def names(self) -> tuple[str, ...]:
        """Returns all names, sorted, of lost layers too."""
        self._moves.see_all()
        with self._lock:
            return self._names.all()

    @property
    def versions_of_all(self) -> int:
        """How many versions all names have together."""
        return self._names.versions_of_all

    def versions(self, name: str) -> NameVersions:
        """Returns the layers that a name has led to, some perhaps not stored any more, or raises LayerNotFoundError."""
        return self._moves.versions(name)

    def missing(self, keys: Sequence[bytes], *, latest: bool = False) -> list[bytes]:
        """Returns those digests that are not stored, in their order, by what was seen last or is the `latest`."""
        self._storage.look(latest=latest)
        return self.unknown(keys)

    def unknown(self, keys: Sequence[bytes]) -> list[bytes]:
        """Returns those digests of which it is not known that they are stored, in their order; nobody is asked."""
        held = self._keys()
        return [key for key in keys if key not in held and key not in self._memory]

    def page(self, prefix: str, after: bytes, size: int) -> list[StoredLayer]:
        """Returns up to `size` layers by their digests: those `after` one that have a name with this prefix, if any."""
        self._storage.look()
        self._moves.see_all()
        keys = self._keys()
        if prefix:
            with self._lock:
                keys &= self._names.starting_with(prefix)
        following = sorted(key for key in keys if key > after)
        if self.is_shared:  # and asked for each that it has not been asked for before
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(self._storage.head, [key for key in following[:size] if key not in self._memory]))
        layers: list[StoredLayer] = []
        for key in following:
            if len(layers) == size:
                break
            with suppress(LayerNotFoundError):  # it was deleted or quarantined just now
                layers.append(self.describe(key))
        return layers

    def usage(self) -> StoreUsage:
        """Returns what the store holds."""
        return StoreUsage(len(self._keys()), self._memory.size, self._memory.evictions, self._storage.usage())

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a layer with this digest is stored."""
        return key in self._memory or key in self._storage

    # Changing

    def check_room(self, size: int, name: str = "") -> None:
        """Checks that a layer of so many bytes may be put; without a folder, layers with a name are never evicted.

        The layer that `name` is taken from may be, if it has no other. Raises TooLargeError if the layer is larger than
        the whole store, or OverloadedError if there is no room and nothing may be evicted.
        """
        self._storage.check_room(size)
        if not self._storage.is_durable:
            with self._lock:
                held = self._names.kept_bytes - self._names.freed_by_moving(name)
                check_room(size, held, self._memory.budget, _MEMORY, "the layers with a name")

    def check_move(self, move: Move, key: bytes) -> None:
        """Checks that a name may move to a layer, as `put` and `move` do. Raises what `LayerNames.moved` does."""
        self._moves.is_to_make(move, key)

    def put(self, layer: Layer, move: Move = NO_MOVE, expected_digest: bytes = b"") -> tuple[StoredLayer, bool, int]:
        """Stores a layer, and moves a name to it; returns it, whether it was there before, and the name's version.

        The store keeps the layer's own weights if they are aligned: nobody may change them any more. Raises what
        `check_room` and `check_move` do, and InvalidRequestError for a wrong name, or another digest than expected.
        """
        if move.name:
            check_name(move.name)
        layer = at_rest(layer)
        key = layer.digest
        if expected_digest and key != expected_digest:
            expected = f"what arrives to have the digest {expected_digest.hex()}"
            raise InvalidRequestError.for_field("expected_digest", expected, f"a layer with digest {key.hex()}")
        with self._storage.lock(key), self._moves.reserved(move.name):
            to_make = move if move.name and self._moves.is_to_make(move, key) else NO_MOVE
            existing = self.find(key)
            if existing is None:
                self.check_room(size_of(layer), to_make.name)
                self._storage.write(layer)
                self._remember(key, layer, to_make)
            version = self._moves.make(move, key) if move.name else 0
            if existing is not None or move.name:
                self._check_kept(key, layer)
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
        with self._storage.lock(key):
            layer = self.describe(key)
            if not self._storage.is_there(key):
                raise not_found(key)
            version = self._moves.make(move, key, to if isinstance(to, int) else 0)
            self._check_kept(key)
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
        self._moves.remove(move)

    def delete(self, reference: Reference) -> None:
        """Removes a layer and its names; or a name, and the layer that only it leads to. LayerNotFoundError if none."""
        if not isinstance(reference, str):
            with self._storage.lock(reference):
                if reference not in self:
                    raise not_found(reference)
                self._moves.see_all(latest=True)
                for name in self._names_of(reference):
                    with suppress(LayerNotFoundError, NameConflictError):  # it is gone or was moved meanwhile
                        self._moves.remove(Move(name, reference))
                self._forget(reference)
            return
        # The name of a layer that is lost can be deleted too.
        self._moves.see(reference, latest=True)
        key = self.versions(reference).digest
        with suppress(NameConflictError), self._storage.lock(key):
            self._moves.remove(Move(reference, key))
            self._moves.see_all(latest=True)  # another name, which another server may have given it just now, stays
            if not self._names_of(key):
                self._forget(key)
            return
        self.delete(reference)  # once more, as it was moved meanwhile

    def sweep(self) -> None:
        """Removes what is kept of layers that were deleted long ago, but for those to which a name has come to lead."""
        deleted = self._storage.deleted()
        if deleted:
            self._moves.see_all(latest=True)
        for key, place in deleted:
            if not self._names_of(key) or self._storage.keep(key, None):
                self._storage.bury(place)

    def pin(self, name: str) -> None:
        """Keeps the layer that a name leads to now in memory, until `unpin`, or until the name or layer is deleted.

        Raises LayerNotFoundError if it leads nowhere, or OverloadedError without room beside what is pinned already.
        """
        key = self.digest_of(name)
        with self._storage.lock(key):
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

    def _remember(self, key: bytes, layer: Layer, move: Move = NO_MOVE) -> None:
        """Holds a layer in memory, from which others may have to go."""
        with self._lock:
            if key not in self._memory:
                self._memory.add(key, layer)
                is_only_here = not self._storage.is_durable
                if move.name and is_only_here:
                    self._moves.make(move, key)  # first: what had the name may have to make room
                self._memory.evict(lambda other: self._names.keeps(other) or (other == key and is_only_here))

    def _recall(self, key: bytes) -> Layer | None:
        """Returns a layer that is in memory, and makes it the last used."""
        with self._lock:
            return self._memory.use(key)

    def _read(self, key: bytes) -> Layer | None:
        """Returns a layer from its file, verified; what was quarantined is not held any more."""
        if key not in self._storage:
            return None
        layer = self._storage.read(key)
        if layer is None and self._is_restored(key):
            layer = self._storage.read(key)
        if layer is None:
            self._report_lost(key, *self._names_of(key))
        return layer

    def _forget(self, key: bytes) -> None:
        """Removes a layer, to which no name leads."""
        if key in self._storage:
            self._storage.delete(key)
        with self._lock:
            self._names.unpin_layer(key)
            self._memory.remove(key)
        self._moves.see_all(latest=True)
        self._is_restored(key)  # if another server let one lead there meanwhile

    def _check_kept(self, key: bytes, layer: Layer | None = None) -> None:
        """Stores a layer again that others have deleted meanwhile. Raises LayerNotFoundError if nobody has it."""
        if not self._storage.keep(key, layer or self._memory.get(key)):
            raise not_found(key)

    def _is_restored(self, key: bytes) -> bool:
        """Returns whether a layer that was deleted could be taken back, as a name leads there by what is read now."""
        for name in self._names_of(key):
            self._moves.see(name, latest=True)
        return bool(self._names_of(key)) and self._storage.restore(key)

    def _keys(self) -> set[bytes]:
        with self._lock:
            return self._storage.keys() if self._storage.is_durable else set(self._memory)

    def _names_of(self, key: bytes) -> tuple[str, ...]:
        with self._lock:
            return self._names.of(key)

    def _digest(self, reference: Reference) -> bytes:
        return self.digest_of(reference) if isinstance(reference, str) else reference

    def _report_lost(self, key: bytes, *names: str) -> None:
        if names:
            log.error("the layer %s is lost, until it is put again; so lead nowhere: %s", key.hex(), ", ".join(names))
