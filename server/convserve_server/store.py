"""The layer store: layers by digest, names that lead to them, a budget of memory, and a folder where there is one.

Without a folder the memory is the store: what was used longest ago goes first when the budget is spent, and layers with
a name stay. With a folder every layer stays on the disk, and the memory holds those used last.
"""

from __future__ import annotations

import errno
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convserve import Conv2D, InvalidRequestError, Layer, LayerNotFoundError, OverloadedError, TooLargeError
from convserve.errors import FieldViolation, shown
from convserve.tensor import Shape, itemsize
from convserve_server.layer_files import LayerFiles

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
# Beside the weights' own bytes, what a layer's objects take.
_OVERHEAD_BYTES = 4096


@dataclass(frozen=True)
class StoredLayer:
    """What is known of a stored layer without its weights.

    Attributes:
        digest: Its identity.
        names: The names that lead to it, sorted.
        config: Its configuration, every seed filled in.
        kernel_shape: The kernel's shape.
    """

    digest: bytes
    names: tuple[str, ...]
    config: Conv2D
    kernel_shape: Shape

    @property
    def parameter_count(self) -> int:
        """The number of weights."""
        height, width, inputs, filters = self.kernel_shape
        return height * width * inputs * filters + (filters if self.config.use_bias else 0)

    @property
    def weight_bytes(self) -> int:
        """The bytes that the weights take."""
        return self.parameter_count * itemsize(self.config.variable_dtype)


@dataclass(frozen=True)
class StoreUsage:
    """What the store holds, and has done since the start.

    Attributes:
        layers: Layers, in memory or on disk.
        memory_bytes: What the layers in memory take.
        evictions: Layers that left the memory for want of room.
    """

    layers: int
    memory_bytes: int
    evictions: int


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
        self._leads_to: dict[str, bytes] = {}
        self._names: dict[bytes, set[str]] = {}
        for name, key in self._files.names() if self._files else ():
            if key in self._on_disk:
                self._leads_to[name] = key
                self._names.setdefault(key, set()).add(name)

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
        with self._disk_lock, _overloaded_where_the_disk_is_full():
            existed = (self._recalled(key) or self._read(key)) is not None
            if not existed:
                self._add(key, layer)
            if name and self._leads_to.get(name) != key:
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
                found = self._recalled(key) or self._read(key)
        if found is None:
            raise _not_found(key)
        return found

    def describe(self, key: bytes) -> StoredLayer:
        """Returns what is known of the layer with this digest, without loading its weights.

        Raises:
            LayerNotFoundError: If there is none.
        """
        with self._lock:
            layer = self._memory.get(key)
            if layer is not None and layer.kernel is not None:
                return StoredLayer(key, self._names_of(key), layer.config, layer.kernel.shape)
        if self._files and key in self._on_disk:
            with self._disk_lock:
                head = self._files.read_head(key)
                if head is not None:
                    return StoredLayer(key, self._names_of(key), *head)
                self._forget(key)  # it was set aside
        raise _not_found(key)

    def digest_of(self, name: str) -> bytes:
        """Returns the digest that a name leads to.

        Raises:
            LayerNotFoundError: If it leads nowhere.
        """
        with self._lock:
            key = self._leads_to.get(name)
        if key is None:
            text = f"Expected the name of a stored layer. Received {shown(name)}, which leads nowhere."
            raise LayerNotFoundError(text, layer=name, by_name=True)
        return key

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
                keys &= {key for name, key in self._leads_to.items() if name.startswith(prefix)}
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
                raise _not_found(key)
            self._forget(key)

    def delete_name(self, name: str) -> None:
        """Removes a name, and its layer if no other name leads to it.

        Raises:
            LayerNotFoundError: If the name leads nowhere.
        """
        with self._disk_lock:
            key = self.digest_of(name)
            if len(self._names[key]) == 1:
                self._forget(key)
                return
            if self._files:
                self._files.delete_name(name)
            with self._lock:
                self._unname(name)

    def usage(self) -> StoreUsage:
        """Returns what the store holds."""
        with self._lock:
            return StoreUsage(len({*self._memory, *self._on_disk}), self._memory_bytes, self._evictions)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether a layer with this digest is stored."""
        return key in self._memory or key in self._on_disk

    def check_room(self, size: int) -> None:
        """Checks that a layer of so many bytes may be put; without a folder, layers with a name are never evicted.

        Raises:
            TooLargeError: If it is larger than the whole store.
            OverloadedError: If there is no room and nothing may be evicted.
        """
        if self._files:
            budget, held, setting, holder = self._disk_budget, self._disk_bytes, "store-bytes", "the layers on disk"
        else:
            budget, held, setting = self._memory_budget, self._pinned_bytes, "layer-memory-bytes"
            holder = "the layers with a name"
        if size > budget:
            text = (
                f"Expected a layer of at most {budget} bytes, the server's --{setting}. Received one of {size} bytes: "
                "ask the operator to raise it."
            )
            raise TooLargeError(FieldViolation("kernel", text))
        if held + size > budget:
            text = (
                f"Expected room for {size} bytes under the server's --{setting} of {budget}. Received none, because "
                f"{holder} take {held}: delete some, or ask the operator to raise it."
            )
            raise OverloadedError(text)

    def _add(self, key: bytes, layer: Layer) -> None:
        self.check_room(_size(layer))
        size = self._files.write(layer, key) if self._files else 0
        with self._lock:
            if self._files:
                self._on_disk[key] = size
                self._disk_bytes += size
            self._remember(key, layer)

    def _name(self, key: bytes, name: str) -> None:
        if self._files:
            self._files.write_name(name, key)
        with self._lock:
            self._unname(name)
            self._leads_to[name] = key
            self._names.setdefault(key, set()).add(name)
            if not self._files and len(self._names[key]) == 1:
                self._pinned_bytes += _size(self._memory[key])

    def _names_of(self, key: bytes) -> tuple[str, ...]:
        return tuple(sorted(self._names.get(key, ())))

    def _recalled(self, key: bytes) -> Layer | None:
        """Returns a layer that is in memory, and makes it the last used."""
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)

    def _read(self, key: bytes) -> Layer | None:
        found = self._files.read(key) if self._files and key in self._on_disk else None
        if found is None:
            self._forget(key)  # it was set aside
        else:
            with self._lock:
                self._remember(key, found)
        return found

    def _remember(self, key: bytes, layer: Layer) -> None:
        """Makes a layer the last used in memory, and lets those used longest ago go until the budget holds."""
        self._memory[key] = layer
        self._memory_bytes += _size(layer)
        for oldest in list(self._memory) if self._memory_bytes > self._memory_budget else ():
            if self._files or (oldest != key and oldest not in self._names):
                self._memory_bytes -= _size(self._memory.pop(oldest))
                self._evictions += 1
                if self._memory_bytes <= self._memory_budget:
                    break

    def _unname(self, name: str) -> None:
        key = self._leads_to.pop(name, None)
        if key is None:
            return
        self._names[key].discard(name)
        if not self._names[key]:
            del self._names[key]
            if not self._files:
                self._pinned_bytes -= _size(self._memory[key])

    def _forget(self, key: bytes) -> None:
        names = self._names_of(key)
        if self._files:
            for name in names:
                self._files.delete_name(name)
            if key in self._on_disk:
                self._files.delete(key)
        with self._lock:
            for name in names:
                self._unname(name)
            layer = self._memory.pop(key, None)
            if layer is not None:
                self._memory_bytes -= _size(layer)
            self._disk_bytes -= self._on_disk.pop(key, 0)


def check_name(name: str) -> None:
    """Checks a layer's name.

    Raises:
        InvalidRequestError: If it has other characters than allowed.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        text = (
            "Expected 1 to 200 letters, digits, '-', '_', '.' or '/', beginning with a letter or digit, without '..'. "
            f"Received {shown(name)}."
        )
        raise InvalidRequestError(FieldViolation("name", text))


@contextmanager
def _overloaded_where_the_disk_is_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"Expected room on the disk of --store. Received none: {error.strerror}. Delete some layers."
        raise OverloadedError(text) from error


def _not_found(key: bytes) -> LayerNotFoundError:
    text = f"Expected a stored layer. Received digest {key.hex()}, which this server does not hold: put it."
    return LayerNotFoundError(text, layer=key.hex())


def _size(layer: Layer) -> int:
    return sum(each.nbytes for each in (layer.kernel, layer.bias) if each is not None) + _OVERHEAD_BYTES
