"""Moves of names: made in the tables, and durably where there is a folder or a bucket; those of one name in order.

The rules are those of `LayerNames`, wherever it is kept. Where several servers share a bucket, a name is read
anew before a rule is held against it, and what another server has moved meanwhile is read again.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from convserve.errors import OverloadedError, UnavailableError
from convserve.protocol.name_messages import MOVE_ID_BYTES
from convserve_server.layer_store.durable.storage import Storage
from convserve_server.layer_store.errors import name_not_found, version_not_found
from convserve_server.layer_store.names import LayerNames, Move, NameVersions

_READERS = 16  # names that are read at once
_ATTEMPTS = 100
_PAUSE_S = 0.005  # after a race that was lost, times the number of the attempt
_RETRY_S = 1.0


class NameMoves:
    """What moves names. Its methods may be called from any thread; who holds a layer's lock has taken it before."""

    def __init__(self, names: LayerNames, storage: Storage, tables: threading.RLock) -> None:
        """Takes the names, where they are kept, and the lock of the tables."""
        self._names, self._storage, self._tables = names, storage, tables

    def reserved(self, name: str) -> Any:
        """Returns what keeps a name where it leads while its layer is written; elsewhere other servers may move it."""
        return self._storage.lock(name) if name and not self._storage.is_shared else nullcontext()

    def see(self, name: str, *, latest: bool = False) -> None:
        """Learns what other servers did to a name: if what is known of it is old, or if the `latest` is asked for."""
        if self._storage.is_fresh(name, latest=latest):
            return
        with self._storage.lock(name):
            if self._storage.is_fresh(name, latest=latest):  # another thread's reading is as good
                return
            known = self._names.versions(name)
            try:
                found = self._storage.read_name(name, known)
            except UnavailableError:
                if latest or known is None:
                    raise
                return  # what was seen last is served
            if found != known:
                with self._tables:
                    self._names.set(name, found)

    def see_all(self, *, latest: bool = False) -> None:
        """Learns what other servers did to all names."""
        if moved := self._storage.moved_names(latest=latest):
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(lambda name: self.see(name, latest=True), moved))

    def versions(self, name: str) -> NameVersions:
        """Returns the versions of a name, or raises LayerNotFoundError."""
        self.see(name)
        return self._known(name)

    def version(self, name: str, number: int) -> bytes:
        """Returns the digest to which a name led in one of its versions, or raises LayerNotFoundError."""
        if number > self.versions(name).latest:
            self.see(name, latest=True)
        return self._known_version(name, number)

    def made(self, move: Move) -> tuple[bytes, int] | None:
        """Returns digest and number of the version that a move made before; None if it was not made, or has no id."""
        if not move.id:
            return None
        self.see(move.name, latest=True)
        versions = self._names.versions(move.name)
        number = versions.made_by(move) if versions else None
        return (self._known_version(move.name, number), number) if number else None

    def is_to_make(self, move: Move, key: bytes) -> bool:
        """Returns whether a move to a layer is to be made; not so if it was, or the name leads there already.

        Raises what `LayerNames.moved` does.
        """
        self.see(move.name, latest=True)
        with self._tables:
            return self._names.moved(move, key) is not None

    def make(self, move: Move, key: bytes, number: int = 0) -> int:
        """Makes a move to a layer, whose lock is held, unless it is made; returns the number of its version.

        With a `number` only while the layer is that version of the name: else the name, which was deleted meanwhile,
        would come back. Raises LayerNotFoundError then, and what `LayerNames.moved` does.
        """
        if self._storage.is_shared and not move.id:  # by which it is known again where the answer to a write was lost
            move = move._replace(id=os.urandom(MOVE_ID_BYTES))
        for _ in self._attempts(move.name):
            with self._storage.lock(move.name):
                self.see(move.name, latest=True)
                with self._tables:
                    moved = self._names.moved(move, key)
                # A move that was made may have been the one with which the name forgot this version.
                if moved is not None and number and self._known_version(move.name, number) != key:
                    raise name_not_found(move.name)
                if moved is None or self._is_written(move.name, moved):
                    versions = self._known(move.name)
                    return versions.made_by(move) or versions.latest
        raise AssertionError

    def remove(self, move: Move) -> None:
        """Removes a name that leads where it is expected to. LayerNotFoundError if there is none, NameConflictError."""
        for _ in self._attempts(move.name):
            with self._storage.lock(move.name):
                self.see(move.name, latest=True)
                self._known(move.name)
                self._names.check(move)
                if self._is_written(move.name, None):
                    return

    def _is_written(self, name: str, versions: NameVersions | None) -> bool:
        """Lets a name lead to the last of its versions, or nowhere; returns False if another server moved it before."""
        is_written = self._storage.write_name(name, versions)
        if is_written:
            with self._tables:
                self._names.set(name, versions)
        return is_written

    def _known(self, name: str) -> NameVersions:
        versions = self._names.versions(name)
        if versions is None:
            raise name_not_found(name)
        return versions

    def _known_version(self, name: str, number: int) -> bytes:
        versions = self._known(name)
        key = versions.of(number)
        if key is None:
            raise version_not_found(name, number, versions.first, versions.latest)
        return key

    def _attempts(self, name: str) -> Iterator[int]:
        """Yields the number of each attempt, after a pause: whoever loses a race to other servers begins again."""
        for number in range(_ATTEMPTS):
            if number:
                time.sleep(random.uniform(0, number * _PAUSE_S))
            yield number
        text = f"Expected a name that moves less often. Received {name!r}, which others moved {_ATTEMPTS} times: retry."
        raise OverloadedError(text, retry_after_s=_RETRY_S)
