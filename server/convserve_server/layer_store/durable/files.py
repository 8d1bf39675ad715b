"""Layers in a folder: one safetensors file a layer, one small file a name, each written whole or not at all.

    FOLDER/layers/DIGEST.safetensors    a layer, as layer_file.py has it
    FOLDER/names/SHA256-OF-NAME.json    a name, as name_file.py has it
    FOLDER/quarantine/                  what was torn, tampered with or not ours, kept for the operator to look at
    FOLDER/lock                         locked by the one server that has the folder open, however that server ends

A file is written under another name, synced, and renamed, so a crash leaves the old state or the new one. A layer is
served only if its digest, computed anew, is the one in the file's name; for a list its header suffices.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from convserve.layers.layer import Layer
from convserve_server.layer_store.durable import name_file
from convserve_server.layer_store.durable.layer_file import DAMAGE, encode, read_header, read_layer
from convserve_server.layer_store.durable.storage import Storage
from convserve_server.layer_store.durable.volume import sync_folder, volume_budget, write_whole
from convserve_server.layer_store.errors import disk_errors
from convserve_server.layer_store.names import NameVersions
from convserve_server.layer_store.stored_layer import LayerHead

log = logging.getLogger("convserve")


class LayerFiles(Storage):
    """Layers and names on the disk.

    What reads or writes raises OverloadedError if the disk is full or no file can be opened now, or UnavailableError if
    the folder is gone or may not be read or written.
    """

    is_durable = True
    _holder = "the layers on disk"

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
        super().__init__(budget)
        for path in sorted(self._layers.iterdir()):
            if re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name) and path.is_file():
                self._set_size(bytes.fromhex(path.stem), path.stat().st_size)
            else:
                self._quarantine(path, "its name is not a digest")
        self._budget = volume_budget(folder, self._total, budget, "--store-bytes")

    @disk_errors()
    def _write(self, layer: Layer, key: bytes) -> int:
        data = encode(layer)
        write_whole(self._path(key), data, is_synced=True)
        return len(data)

    @disk_errors()
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

    @disk_errors()
    def _read_head(self, key: bytes) -> LayerHead | None:
        try:
            with self._path(key).open("rb") as file:
                return read_header(file).head
        except (FileNotFoundError, *DAMAGE):
            return None

    @disk_errors()
    def delete(self, key: bytes) -> None:
        self._path(key).unlink(missing_ok=True)
        sync_folder(self._layers)
        self._forget(key)

    @disk_errors()
    def write_name(self, name: str, versions: NameVersions | None) -> bool:
        """Lets a name lead to the last of its versions, or nowhere, synced to the disk."""
        path = self._names / name_file.path_of(name)
        if versions is None:
            path.unlink(missing_ok=True)
            sync_folder(self._names)
        else:
            write_whole(path, name_file.encode(name, versions), is_synced=True)
        return True

    def names(self) -> Iterator[tuple[str, NameVersions]]:
        for path in sorted(self._names.iterdir()):
            try:
                if not path.is_file() or path.stat().st_size > name_file.MAX_BYTES:
                    raise ValueError("it is no file of a name")
                name, versions = name_file.decode(path.read_bytes(), path.name)
            except (OSError, *DAMAGE) as error:
                self._quarantine(path, error)
                continue
            if versions is not None:  # a removed one is a bucket's that was copied here
                yield name, versions

    def _path(self, key: bytes) -> Path:
        return self._layers / f"{key.hex()}.safetensors"

    def _quarantine(self, path: Path, why: object) -> None:
        # A name may already be as long as names of files can be.
        target = self._quarantined / f"{time.time_ns()}-{os.fsdecode(os.fsencode(path.name)[-200:])}"
        # As Python texts, because a name that is no UTF-8 could not be written to a log.
        log.error("%r is quarantined as %r and not served: %s", str(path), str(target), why)
        path.rename(target)


def _lock_out_other_processes(owner: LayerFiles, path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    weakref.finalize(owner, os.close, descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise OSError(errno.EBUSY, "another server has it open") from error
