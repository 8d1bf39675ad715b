"""Files that the server reads again when they change."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from convserve_server.settings import SettingsError

T = TypeVar("T")

log = logging.getLogger("convserve")


class ReloadedFiles(Generic[T]):
    """What some files hold. If they are wrong after a change, what they held before stays in use."""

    def __init__(self, paths: Sequence[str], read: Callable[[], T], option: str) -> None:
        """Reads the files, without empty paths, that a setting names.

        `read` raises a SettingsError that shows nothing of them if they are wrong, and then so does this.
        """
        self._paths, self._read, self._option = [path for path in paths if path], read, option
        self._lock = threading.Lock()
        self._state = self._files_state()
        self._content = read()

    def content(self) -> T:
        """Returns what the files hold now."""
        with self._lock:
            state = self._files_state()
            if state != self._state:
                self._state = state
                try:
                    self._content = self._read()
                except SettingsError as error:
                    log.error("%s What it held before stays in use.", error)
                else:
                    log.info("%s: read %s again", self._option, self._paths[0])
            return self._content

    def _files_state(self) -> list[tuple[int, ...]]:
        states: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                status = os.stat(path)
                states.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                states.append(())
        return states
