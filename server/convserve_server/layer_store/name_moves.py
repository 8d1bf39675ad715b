"""Moves of names: made in the tables, and in the names' files where there is a folder; those of one name in order."""

from __future__ import annotations

import threading
from typing import Any

from convserve_server.layer_store.errors import name_not_found, version_not_found
from convserve_server.layer_store.files import LayerFiles
from convserve_server.layer_store.names import LayerNames, Move, NameVersions


class NameMoves:
    """What moves names. Its methods may be called from any thread; who holds a layer's lock has taken it before."""

    def __init__(self, names: LayerNames, files: LayerFiles | None, tables: threading.RLock) -> None:
        """Takes the names, their files, if there is a folder, and the lock of the tables."""
        self._names, self._files, self._tables = names, files, tables

    def locked(self, name: str) -> Any:
        """Returns the lock of a name's file; without a folder, where nothing is slow, the tables' own."""
        return self._tables if self._files is None else self._files.lock(name)

    def versions(self, name: str) -> NameVersions:
        """Returns the versions of a name, or raises LayerNotFoundError."""
        versions = self._names.versions(name)
        if versions is None:
            raise name_not_found(name)
        return versions

    def version(self, name: str, number: int) -> bytes:
        """Returns the digest to which a name led in one of its versions, or raises LayerNotFoundError."""
        versions = self.versions(name)
        key = versions.of(number)
        if key is None:
            raise version_not_found(name, number, versions.first, versions.latest)
        return key

    def made(self, move: Move) -> tuple[bytes, int] | None:
        """Returns digest and number of the version that a move made before; None if it was not made, or has no id."""
        versions = self._names.versions(move.name)
        number = versions.made_by(move) if versions else None
        return (self.version(move.name, number), number) if number else None

    def is_to_make(self, move: Move, key: bytes) -> bool:
        """Returns whether a move to a layer is to be made; not so if it was, or the name leads there already.

        Raises what `LayerNames.moved` does.
        """
        with self._tables:
            return self._names.moved(move, key) is not None

    def make(self, move: Move, key: bytes) -> int:
        """Makes a move to a layer, whose lock is held, unless it is made; returns the number of its version.

        Raises what `LayerNames.moved` does.
        """
        with self.locked(move.name):
            with self._tables:
                moved = self._names.moved(move, key)
            if moved is not None:
                if self._files:
                    self._files.write_name(move.name, moved)
                with self._tables:
                    self._names.move(move.name, moved)
            versions = moved or self.versions(move.name)
            return versions.made_by(move) or versions.latest

    def remove(self, name: str, key: bytes) -> bool:
        """Removes a name, and returns whether it led to this layer, else leaves it."""
        with self.locked(name):
            if self._names.digest_of(name) != key:
                return False
            if self._files:
                self._files.delete_name(name)
            with self._tables:
                self._names.remove(name)
            return True

    def remove_expected(self, move: Move) -> None:
        """Removes a name wherever it leads. Raises LayerNotFoundError if there is none, or NameConflictError."""
        with self.locked(move.name):
            key = self.versions(move.name).digest
            self._names.check(move)
            self.remove(move.name, key)
