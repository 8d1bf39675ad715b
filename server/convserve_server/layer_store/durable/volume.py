"""A volume: how much of it the layers in a folder may take, and files that are there whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("convserve")


def volume_budget(folder: Path, held: int, given: int, setting: str) -> int:
    """Returns what layers that take `held` bytes already may take: what is given, with a warning if it is not there.

    Of 0, it is that and nine tenths of what is free. A quota, as of Kubernetes' emptyDir, is not seen.
    """
    free = shutil.disk_usage(folder).free
    if given > held + free:
        log.warning("%s is %d, but %s holds %d and has %d free", setting, given, folder, held, free)
    return given or held + free * 9 // 10


def write_whole(path: Path, content: bytes | memoryview, *, is_synced: bool) -> None:
    """Writes a file under another name, and renames it; `is_synced`: so that it outlasts a crash once this returns."""
    partial = path.with_name(f"{path.name}.{os.urandom(6).hex()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        partial.rename(path)
        if is_synced:
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it was renamed, or what failed before is what is raised
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """A rename is durable only once the folder that holds the name is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
