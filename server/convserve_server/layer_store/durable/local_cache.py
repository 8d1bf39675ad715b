"""Copies of layers on this machine's disk, so that what was fetched once is not fetched again after a restart.

Several servers may share a folder: a file is written under another name and renamed, read whole or not at all, and
verified each time; who finds a damaged one removes it. What was used longest ago goes first.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from convserve.layers.layer import Layer
from convserve_server.layer_store.durable.layer_file import DAMAGE, read_layer
from convserve_server.layer_store.durable.volume import volume_budget, write_whole

log = logging.getLogger("convserve")

_OLD_S = 3600.0  # of a file that a server which ended began to write


class LocalCache:
    """Layers in files, up to a number of bytes. Its methods may be called from any thread, and never fail."""

    def __init__(self, folder: Path, budget: int) -> None:
        """Makes the folder where it is missing. Raises OSError if that, or writing to it, fails."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._lock = folder, threading.Lock()
        self.hits = self.misses = self.size = 0
        tempfile.TemporaryFile(dir=folder).close()
        held = sum(size for _, size, _ in self._files())
        self._budget = volume_budget(folder, held, budget, "--store-cache-bytes")
        self._evict()

    def read(self, key: bytes) -> Layer | None:
        """Returns a layer, verified, or None."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                layer = read_layer(file, key)
            self.hits += 1
            with suppress(OSError):
                os.utime(path)  # used just now
            return layer
        except FileNotFoundError:
            pass
        except (*DAMAGE, OSError) as error:
            log.warning("%s is removed from the cache: %s", path, error)
            with suppress(OSError):
                path.unlink()
        self.misses += 1
        return None

    def write(self, key: bytes, content: bytes | memoryview) -> None:
        """Keeps the contents of a layer's file, if there is room for it by itself."""
        if len(content) > self._budget:
            return
        try:
            write_whole(self._path(key), content, is_synced=False)
            self._evict()
        except OSError as error:
            log.warning("the layer %s is not kept in the cache: %s", key.hex(), error)

    def remove(self, key: bytes) -> None:
        """Removes a layer, if it is there."""
        with suppress(OSError):
            self._path(key).unlink()

    def _evict(self) -> None:
        with self._lock:
            files = self._files()
            size = sum(each for _, each, _ in files)
            for _, each, path in sorted(files):
                if size <= self._budget:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                size -= each
            self.size = size

    def _files(self) -> list[tuple[int, int, str]]:
        """Returns when each file was used, its size and path; removes those that nobody went on to write."""
        files, old = [], time.time() - _OLD_S
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # another server removed it just now
                status = entry.stat()
                if entry.name.endswith(".safetensors"):
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
                elif entry.name.endswith(".partial") and status.st_mtime < old:
                    os.unlink(entry.path)
        return files

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.safetensors"
