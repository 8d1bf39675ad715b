"""Layers in a folder: one safetensors file a layer, one small file a name, each written whole or not at all.

    FOLDER/layers/DIGEST.safetensors    a layer, as layer_file.py has it
    FOLDER/names/SHA256-OF-NAME.json    {"name": ..., "digest": ..., "before": [...], "first": ..., "moves": [...]}:
                                        where it leads, the digests where it led before, the version's number of the
                                        first of them all, and for each of them all when it moved there, and the id of
                                        that move
    FOLDER/quarantine/                  what was torn, tampered with or not ours, kept for the operator to look at
    FOLDER/lock                         locked by the one server that has the folder open, however that server ends

A file is written under another name, synced, and renamed, so a crash leaves the old state or the new one. A layer is
served only if its digest, computed anew, is the one in the file's name; for a list its header suffices.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import operator
import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from convserve.layers.layer import Layer
from convserve_server.layer_store.errors import check_room, with_disk_errors
from convserve_server.layer_store.layer_file import DAMAGE, encode, read_head, read_layer
from convserve_server.layer_store.names import MAX_VERSIONS, NameVersions, Version
from convserve_server.layer_store.stored_layer import LayerHead

log = logging.getLogger("convserve")

_MAX_NAME_FILE = 2**12 + 2**7 * MAX_VERSIONS


class LayerFiles:
    """The durable half of a store: layers and names on the disk, and in memory what is known of them.

    Its methods may be called from any thread, those that change or read a layer or name only under its `lock`. These
    raise OverloadedError if the disk is full or no file can be opened now, or UnavailableError if the folder is gone or
    may not be read or written.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        """Makes the folder where it is missing, and clears what an interrupted write left.

        Raises OSError if the folder cannot be made or written to; EBUSY if another process has it open.
        """
        self._layers, self._names, self._quarantined = (folder / name for name in ("layers", "names", "quarantine"))
        for subfolder in (self._layers, self._names, self._quarantined):
            subfolder.mkdir(parents=True, exist_ok=True)
        _lock_out_other_processes(self, folder / "lock")
        for subfolder in (self._layers, self._names, self._quarantined):
            tempfile.TemporaryFile(dir=subfolder).close()
        for partial in (*self._layers.glob("*.partial"), *self._names.glob("*.partial")):
            if partial.is_file():
                partial.unlink()
        self._budget = budget
        self._lock = threading.Lock()  # of the tables; no thread holds it while the disk works
        self._locks: weakref.WeakValueDictionary[bytes | str, threading.RLock] = weakref.WeakValueDictionary()
        self._sizes: dict[bytes, int] = {}  # of the files; contents are checked when they are read
        for path in sorted(self._layers.iterdir()):
            if re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name) and path.is_file():
                self._sizes[bytes.fromhex(path.stem)] = path.stat().st_size
            else:
                self._quarantine(path, "its name is not a digest")
        self._total = sum(self._sizes.values())  # with what is being written
        self._heads: dict[bytes, LayerHead] = {}

    def lock(self, reference: bytes | str) -> threading.RLock:
        """Returns the lock of a layer, by its digest, or of a name. Who needs both takes the layer's first."""
        with self._lock:
            return self._locks.setdefault(reference, threading.RLock())

    def keys(self) -> set[bytes]:
        """Returns the digests of the layers."""
        with self._lock:
            return set(self._sizes)

    def __contains__(self, key: bytes) -> bool:
        """Returns whether there is a layer with this digest."""
        return key in self._sizes

    def check_room(self, size: int) -> None:
        """Checks that there is room for a layer of so many bytes. Raises TooLargeError or OverloadedError."""
        check_room(size, self._total, self._budget, "store-bytes", "the layers on disk")

    @with_disk_errors
    def write(self, layer: Layer, key: bytes, size: int) -> None:
        """Stores a layer of about so many bytes, synced to the disk when this returns.

        Raises TooLargeError or OverloadedError as `check_room`.
        """
        with self._lock:
            self.check_room(size)
            self._total += size
        file_size = 0
        try:
            data = encode(layer)
            _write_whole(self._path(key), data)
            file_size = len(data)
        finally:
            with self._lock:
                self._total += file_size - size
                if file_size:
                    self._sizes[key] = file_size

    @with_disk_errors
    def read(self, key: bytes) -> Layer | None:
        """Returns a layer, verified, or None; a damaged file is quarantined and reported."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                return read_layer(file, key)
        except FileNotFoundError:
            pass
        except DAMAGE as error:
            self._quarantine(path, error)
        self._forget(key)
        return None

    @with_disk_errors
    def head(self, key: bytes) -> LayerHead | None:
        """Returns what a layer's file says of it; None if it is damaged or missing. It needs no lock."""
        head = self._heads.get(key)
        if head is None and key in self:
            try:
                with self._path(key).open("rb") as file:
                    head = read_head(file)
            except (FileNotFoundError, *DAMAGE):
                return None
            with self._lock:
                if key in self._sizes:
                    self._heads[key] = head
        return head

    @with_disk_errors
    def delete(self, key: bytes) -> None:
        """Removes a layer."""
        self._path(key).unlink(missing_ok=True)
        _sync_folder(self._layers)
        self._forget(key)

    @with_disk_errors
    def write_name(self, name: str, versions: NameVersions) -> None:
        """Lets a name lead to the last of its versions, synced to the disk."""
        *before, digest = (key.hex() for key in versions.digests)
        moves = [[version.moved_us, version.move_id.hex()] for version in versions.versions]
        entry = {"name": name, "digest": digest, "before": before, "first": versions.first, "moves": moves}
        _write_whole(self._name_path(name), json.dumps(entry).encode())

    @with_disk_errors
    def delete_name(self, name: str) -> None:
        """Removes a name."""
        self._name_path(name).unlink(missing_ok=True)
        _sync_folder(self._names)

    def names(self) -> Iterator[tuple[str, NameVersions]]:
        """Yields every name with its versions."""
        for path in sorted(self._names.iterdir()):
            try:
                if not path.is_file() or path.stat().st_size > _MAX_NAME_FILE:
                    raise ValueError("it is no file of a name")
                entry = json.loads(path.read_text(encoding="utf-8"))
                name = entry["name"]
                if path != self._name_path(name):
                    raise ValueError("its contents don't fit its name")
                versions = _versions_of(entry)
            except (OSError, *DAMAGE) as error:
                self._quarantine(path, error)
                continue
            yield name, versions

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._total -= self._sizes.pop(key, 0)
            self._heads.pop(key, None)

    def _path(self, key: bytes) -> Path:
        return self._layers / f"{key.hex()}.safetensors"

    def _name_path(self, name: str) -> Path:
        # Hashed, so that no name, whatever its characters, can lead out of the folder or be too long for it.
        return self._names / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _quarantine(self, path: Path, why: object) -> None:
        # A name may already be as long as names of files can be.
        target = self._quarantined / f"{time.time_ns()}-{os.fsdecode(os.fsencode(path.name)[-200:])}"
        # As Python texts, because a name that is no UTF-8 could not be written to a log.
        log.error("%r is quarantined as %r and not served: %s", str(path), str(target), why)
        path.rename(target)


def _versions_of(entry: dict[str, Any]) -> NameVersions:
    """Returns what a name's file says of its versions; raises a DAMAGE for what makes no sense."""
    # What was written before names had versions has one; before moves were noted, none of these.
    first = entry.get("first", 1)
    if not isinstance(first, int) or isinstance(first, bool) or first < 1:
        raise ValueError("its versions have no number")
    digests = [bytes.fromhex(digest) for digest in (*entry.get("before", ()), entry["digest"])]
    moves = entry.get("moves") or [[0, ""]] * len(digests)
    versions = tuple(
        Version(digest, operator.index(moved_us), bytes.fromhex(move_id))
        for digest, (moved_us, move_id) in zip(digests, moves, strict=True)
    )
    if any(len(version.digest) != 32 or not 0 <= version.moved_us < 2**63 for version in versions):
        raise ValueError("its versions make no sense")
    return NameVersions(versions, first)


def _lock_out_other_processes(owner: LayerFiles, path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    weakref.finalize(owner, os.close, descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise OSError(errno.EBUSY, "another server has it open") from error


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.urandom(6).hex()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it was renamed, or what failed before is what is raised
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once the folder that holds the name is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
