"""The layer store: layers by digest, names that lead to them, a budget of memory, and a folder where there is one.

Without a folder the memory is the store: what was used longest ago goes first when the budget is spent, and layers with
a name stay. With a folder every layer stays on the disk, and the memory holds those used last, and those that are
pinned. A layer whose file is missing or was set aside is not held, but its names are kept: they lead to it again once
it is put again.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from convserve.errors import LayerNotFoundError
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.protocol.stored_layers import check_name
from convserve.tensors.codec import Shape
from convserve_server.layer_store.errors import check_room, name_not_found, not_found, overloaded_where_the_disk_is_full
from convserve_server.layer_store.files import LayerFiles
from convserve_server.layer_store.names import LayerNames, NameVersions
from convserve_server.layer_store.pins import LayerPins
from convserve_server.layer_store.stored_layer import StoredLayer, StoreUsage

log = logging.getLogger("convserve")

# Beside the weights' own bytes, what a layer's objects take.
_OVERHEAD_BYTES = 4096
_MEMORY = "layer-memory-bytes"


class LayerStore:
    """Layers by digest and by name. Its methods may be called from any thread."""

    def __init__(self, memory_bytes: int, disk_bytes: int = 0, folder: Path | None = None) -> None:
        """Opens the store.

        Args:
            memory_bytes: The budget of layers in memory.
            disk_bytes: The budget of layers in the folder.
            folder: Where layers are durable; None for memory alone.

        Raises:
            OSError: If the folder cannot be used.
        """
        self._memory_budget, self._disk_budget = memory_bytes, disk_bytes
        self._lock = threading.RLock()  # for the tables; never held while the disk works
        self._disk_lock = threading.RLock()  # for whoever changes the store or reads the disk; taken first
        self._memory: OrderedDict[bytes, Layer] = OrderedDict()
        self._memory_bytes = self._pinned_bytes = self._evictions = 0
        self._files = LayerFiles(folder) if folder is not None else None
        self._on_disk: dict[bytes, int] = self._files.sizes() if self._files else {}
        self._disk_bytes = sum(self._on_disk.values())
        # Of layers on disk whose digest has been checked since the start, so that nobody is told what a file claims.
        self._heads: dict[bytes, tuple[Conv2D, Shape]] = {}
        self._names, self._pins = LayerNames(), LayerPins()
        for name, versions in self._files.names() if self._files else ():
            self._names.add(name, versions)
        for key in self._names.digests() - self._on_disk.keys():
            self._report_lost(key)

    def put(self, layer: Layer, name: str = "") -> tuple[StoredLayer, bool]:
        """Stores a layer, and lets a name lead to it; returns it and whether it was there before.

        Raises:
            InvalidRequestError: For a name with other characters than allowed.
            TooLargeError: If it is larger than the whole store.
            OverloadedError: If there is no room and nothing may be evicted.
        """
        if name:
            check_name(name)
        key = layer.digest
        with self._disk_lock, overloaded_where_the_disk_is_full():
            existed = (self._recalled(key) or self._fetched(key)) is not None
            if not existed:
                self._add(key, layer, name)
            if name and self._names.digest_of(name) != key:
                self._name(key, name)
            return self.describe(key), existed

    def layer(self, key: bytes) -> Layer:
        """Returns the layer with this digest.

        Raises:
            LayerNotFoundError: If there is none.
        """
        found = self._recalled(key)
        if found is None and key in self._on_disk:
            with self._disk_lock:
                found = self._recalled(key) or self._fetched(key)
        if found is None:
            raise not_found(key)
        return found

    def describe(self, key: bytes) -> StoredLayer:
        """Returns what is known of the layer with this digest. Its file is read the first time after a start.

        Raises:
            LayerNotFoundError: If there is none.
        """
        with self._lock:
            layer = self._memory.get(key)
            head = self._heads.get(key) if layer is None else _head(layer)
        if head is None:
            with self._disk_lock:
                layer = self._read(key)
            if layer is None:
                raise not_found(key)
            head = _head(layer)
        return StoredLayer(key, self._names.of(key), *head)

    def digest_of(self, name: str) -> bytes:
        """Returns the digest that a name leads to.

        Raises:
            LayerNotFoundError: If it leads nowhere.
        """
        with self._lock:
            key = self._names.digest_of(name)
        if key is None or key not in self:
            raise name_not_found(name, key)
        return key

    def names(self) -> tuple[str, ...]:
        """Returns all names, sorted, of lost layers too."""
        with self._lock:
            return self._names.all()

    def versions(self, name: str) -> NameVersions:
        """Returns the layers that a name has led to, of which some may not be stored any more.

        Raises:
            LayerNotFoundError: If there is no such name.
        """
        with self._lock:
            if (found := self._names.versions(name)) is None:
                raise name_not_found(name)
            return found

    def pin(self, name: str) -> None:
        """Keeps the layer that a name leads to now in memory, until `unpin`, or until the name or layer is deleted.

        Raises:
            LayerNotFoundError: If it leads nowhere.
            OverloadedError: If there is no room beside what is pinned already.
        """
        with self._disk_lock:
            key = self.digest_of(name)
            if (layer := self._recalled(key) or self._read(key)) is None:
                raise not_found(key)
            with self._lock:
                # Without a folder it has its room already, as it has a name.
                if self._files and key not in self._pins:
                    held = sum(_size(self._memory[each]) for each in self._pins.digests())
                    check_room(_size(layer), held, self._memory_budget, _MEMORY, "the layers that are pinned")
                self._pins.add(name, key)
                self._remember(key, layer)

    def unpin(self, name: str) -> None:
        """Ends what `pin` began for a name, whichever layers it has led to since."""
        with self._lock:
            for key in self._pins.remove(name):
                if not self._files and key not in self._names:
                    self._pinned_bytes -= _size(self._memory[key])

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Returns those digests that are not stored, in their order."""
        with self._lock:
            return [key for key in keys if key not in self]

    def page(self, prefix: str, after: bytes, size: int) -> list[StoredLayer]:
        """Returns up to `size` layers in the order of their digests.

        Args:
            prefix: Only layers with a name that begins so; empty for all.
            after: Only digests greater than this.
            size: The most layers.
        """
        with self._lock:
            keys = {*self._memory, *self._on_disk}
            if prefix:
                keys &= self._names.beginning_with(prefix)
        found: list[StoredLayer] = []
        for key in sorted(key for key in keys if key > after):
            if len(found) == size:
                break
            try:
                found.append(self.describe(key))
            except LayerNotFoundError:  # it went, or was set aside just now
                continue
        return found

    def delete(self, key: bytes) -> None:
        """Removes a layer and its names.

        Raises:
            LayerNotFoundError: If there is none.
        """
        with self._disk_lock:
            if key not in self:
                raise not_found(key)
            self._forget(key)

    def delete_name(self, name: str) -> None:
        """Removes a name, and its layer if no other name leads to it.

        Raises:
            LayerNotFoundError: If the name leads nowhere.
        """
        with self._disk_lock:
            key = self._names.digest_of(name) or self.digest_of(name)
            if self._names.of(key) == (name,):
                self._forget(key)
                return
            if self._files:
                self._files.delete_name(name)
            with self._lock:
                self.unpin(name)
                self._unname(name)

    def usage(self) -> StoreUsage:
        """Returns what the store holds."""
        with self._lock:
            return StoreUsage(len({*self._memory, *self._on_disk}), self._memory_bytes, self._evictions)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a layer with this digest is stored."""
        return key in self._memory or key in self._on_disk

    def check_room(self, size: int, name: str = "") -> None:
        """Checks that a layer of so many bytes may be put; without a folder, layers with a name are never evicted.

        The layer that `name` is taken from may be, if it has no other.

        Raises:
            TooLargeError: If it is larger than the whole store.
            OverloadedError: If there is no room and nothing may be evicted.
        """
        if self._files:
            check_room(size, self._disk_bytes, self._disk_budget, "store-bytes", "the layers on disk")
            return
        held = self._pinned_bytes
        with self._lock:
            before = self._names.digest_of(name)
            if before and self._names.of(before) == (name,) and before not in self._pins:
                held -= _size(self._memory[before])
        check_room(size, held, self._memory_budget, _MEMORY, "the layers with a name")

    def _add(self, key: bytes, layer: Layer, name: str) -> None:
        self.check_room(_size(layer), name)
        size = self._files.write(layer, key) if self._files else 0
        with self._lock:
            if self._files:
                self._on_disk[key] = size
                self._disk_bytes += size
                self._heads[key] = _head(layer)
            self._memory[key] = layer
            self._memory_bytes += _size(layer)
            if name and not self._files:
                self._name(key, name)  # before anything is evicted: what had the name may have to make room
            self._evict_for(key)

    def _name(self, key: bytes, name: str) -> None:
        before = self._names.versions(name)
        versions = NameVersions((key,)) if before is None else before.moved_to(key)
        if self._files:
            self._files.write_name(name, versions)
        with self._lock:
            self._unname(name)
            if not self._files and key not in self._names and key not in self._pins:
                self._pinned_bytes += _size(self._memory[key])
            self._names.add(name, versions)

    def _recalled(self, key: bytes) -> Layer | None:
        """Returns a layer that is in memory, and makes it the last used."""
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)

    def _fetched(self, key: bytes) -> Layer | None:
        """Returns a layer from its file, and makes it the last used in memory."""
        found = self._read(key)
        if found is not None:
            self._remember(key, found)
        return found

    def _remember(self, key: bytes, layer: Layer) -> None:
        with self._lock:
            if key not in self._memory:
                self._memory[key] = layer
                self._memory_bytes += _size(layer)
                self._evict_for(key)

    def _read(self, key: bytes) -> Layer | None:
        """Returns a layer from its file, checked against its digest; one that was set aside is not held any more."""
        if self._files is None or key not in self._on_disk:
            return None
        found = self._files.read(key)
        if found is None:
            self._drop(key)
            self._report_lost(key)
        else:
            self._heads[key] = _head(found)
        return found

    def _report_lost(self, key: bytes) -> None:
        names = self._names.of(key)
        if names:
            told = ", ".join(names)
            log.error("the layer %s is lost, until it is put again; so lead nowhere: %s", key.hex(), told)

    def _evict_for(self, key: bytes) -> None:
        """Lets layers used longest ago leave the memory until the budget holds."""
        for oldest in list(self._memory) if self._memory_bytes > self._memory_budget else ():
            if oldest not in self._pins and (self._files or (oldest != key and oldest not in self._names)):
                self._memory_bytes -= _size(self._memory.pop(oldest))
                self._evictions += 1
                if self._memory_bytes <= self._memory_budget:
                    break

    def _unname(self, name: str) -> None:
        unnamed = self._names.remove(name)
        if unnamed and not self._files and unnamed not in self._pins:
            self._pinned_bytes -= _size(self._memory[unnamed])

    def _forget(self, key: bytes) -> None:
        names = self._names.of(key)
        if self._files:
            for name in names:
                self._files.delete_name(name)
            if key in self._on_disk:
                self._files.delete(key)
        with self._lock:
            for name in names:
                self.unpin(name)
                self._unname(name)
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        with self._lock:
            layer = self._memory.pop(key, None)
            is_pinned = self._pins.forget(key)
            if layer is not None:
                self._memory_bytes -= _size(layer)
                if is_pinned and not self._files:  # by a name that has moved on
                    self._pinned_bytes -= _size(layer)
            self._disk_bytes -= self._on_disk.pop(key, 0)
            self._heads.pop(key, None)


def _head(layer: Layer) -> tuple[Conv2D, Shape]:
    assert layer.kernel is not None  # noqa: S101 (the store takes no layer without)
    return layer.config, layer.kernel.shape


def _size(layer: Layer) -> int:
    return sum(each.nbytes for each in (layer.kernel, layer.bias) if each is not None) + _OVERHEAD_BYTES
