"""Layers in a bucket that several servers share.

    PREFIX/layers/DIGEST.safetensors    a layer, as layer_file.py has it; created once, as its content never changes
    PREFIX/names/SHA256-OF-NAME.json    a name, as name_file.py has it, replaced only by who has seen what is replaced;
                                        of a name that was removed {"name": ..., "removed": ...} stays for good:
                                        nothing can be deleted on a condition, and a late deletion would take the
                                        name that another server has put there since
    PREFIX/deleted/DIGEST/ID            a layer that was deleted, for a day: see below
    PREFIX/quarantine/                  what was no layer, and was replaced by the one that it should have been
    PREFIX/convserve.json               the format

A layer is served only if its digest, computed anew, is the one in its path, from the bucket and from the cache alike.

Deleting. A layer's names go first. It is then copied, deleted, and the names are listed once more: if one leads to the
layer by now, the copy goes back. Whoever lets a name lead to a layer looks after that whether the layer is there, and
stores it again or takes the copy back if it is not. Listings and reads show what was written before they began, so
that one of the two sees the other, whichever came first; and where a server ends in between, whoever misses a layer to
which a name leads takes the copy back. A server that falls asleep between copying and deleting deletes nothing.
"""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from convserve.errors import UnavailableError
from convserve.layers.layer import Layer
from convserve_server.layer_store.durable import name_file
from convserve_server.layer_store.durable.bucket import Bucket, Content, Stamp
from convserve_server.layer_store.durable.layer_file import DAMAGE, encode, read_header
from convserve_server.layer_store.durable.local_cache import LocalCache
from convserve_server.layer_store.durable.reachability import NotModifiedError
from convserve_server.layer_store.durable.storage import Storage
from convserve_server.layer_store.names import NameVersions
from convserve_server.layer_store.stored_layer import DurableUsage, LayerHead

log = logging.getLogger("convserve")

_KEPT = timedelta(days=1)  # what was deleted
_MAX_SLEEP_S = 3600.0  # between copying a layer and deleting it
_CHUNK = 2**20 + 8  # a layer's header and more, which tells of what follows
_HEAD = 2**16
_READERS = 16


class _Seen(NamedTuple):
    """What was seen of a name, and when."""

    name: str
    stamp: Stamp
    at: float
    is_removed: bool


class BucketLayers(Storage):
    """Layers and names in a bucket, and copies of layers in a folder if there is one."""

    is_durable = is_shared = True
    _holder = "the layers in the bucket"

    def __init__(self, bucket: Bucket, budget: int, *, age_s: float = 1.0, cache: LocalCache | None = None) -> None:
        """Takes the bucket, in which layers may take so many bytes, and for how long a name that was read is used.

        Raises UnusableBucketError if the bucket does not do what is needed.
        """
        super().__init__(budget)
        self._bucket, self._age_s, self._cache = bucket, age_s, cache
        # By the objects' paths:
        self._seen: dict[str, _Seen] = {}  # names
        self._damaged: dict[str, str] = {}  # ETags of what is no layer, or no name
        self._sound: dict[str, str] = {}  # ETags of layers that were verified or written
        self._damages = 0
        self._looked = self._listed = float("-inf")
        bucket.begin()
        self.look()

    # Layers

    def look(self, *, latest: bool = False) -> None:
        """Learns which layers others have stored or deleted, unless it did so just now or the bucket is away."""
        if self._bucket.reachability.is_away or (not latest and time.monotonic() - self._looked < self._age_s):
            return
        before, began = self.keys(), time.monotonic()
        listed = {}
        try:
            objects = self._bucket.list("layers")
        except UnavailableError:
            if self._looked > 0:
                return  # what was seen last is served
            raise
        for each in objects:
            match = re.fullmatch(r"layers/([0-9a-f]{64})\.safetensors", each.path)
            if match and self._damaged.get(each.path) != each.e_tag:
                listed[bytes.fromhex(match[1])] = each.size
        for key in before - listed.keys():
            self._forget(key)
        with self._lock:
            for key, size in listed.items():
                self._set_size(key, size)
        self._looked = began

    def __contains__(self, key: bytes) -> bool:
        """Returns whether there is a layer with this digest, by asking if it is not known."""
        if key in self._sizes:
            return True
        found = self._bucket.find(_path(key))
        if found is None or self._damaged.get(found.path) == found.e_tag:
            return False
        with self._lock:
            self._set_size(key, found.size)
        return True

    def is_there(self, key: bytes) -> bool:
        return self._bucket.find(_path(key)) is not None

    def read(self, key: bytes) -> Layer | None:
        layer = self._cache.read(key) if self._cache else None
        return layer or self._fetch(key)

    def delete(self, key: bytes) -> None:
        """Removes a layer, to which no name leads, and keeps a copy for a day."""
        began = time.monotonic()
        while self._bucket.copy(_path(key), f"deleted/{key.hex()}/{os.urandom(8).hex()}"):
            if time.monotonic() - began < _MAX_SLEEP_S:
                self._bucket.delete(_path(key))
                break
            began = time.monotonic()
        if self._cache:
            self._cache.remove(key)
        self._forget(key)

    def keep(self, key: bytes, layer: Layer | None) -> bool:
        found = self._bucket.find(_path(key))
        if found is not None and (layer is None or self._sound.get(found.path) == found.e_tag):
            return True
        if layer is None:
            return self.restore(key)
        size = self._write(layer, key)
        with self._lock:
            self._set_size(key, size)
        return True

    def restore(self, key: bytes) -> bool:
        for copy in self._bucket.list(f"deleted/{key.hex()}"):
            if self._bucket.copy(copy.path, _path(key)):
                with self._lock:
                    self._set_size(key, copy.size)
                log.warning("the layer %s was deleted while a name came to lead there, and is back", key.hex())
                return True
        return False

    def deleted(self) -> list[tuple[bytes, str]]:
        old = datetime.now(UTC) - _KEPT
        copies = [each.path for each in self._bucket.list("deleted") if each.modified < old]
        return [
            (bytes.fromhex(m[1]), m[0]) for path in copies if (m := re.fullmatch(r"deleted/([0-9a-f]{64})/\w+", path))
        ]

    def bury(self, place: str) -> None:
        self._bucket.delete(place)

    def usage(self) -> DurableUsage:
        bucket, cache = self._bucket.reachability, self._cache
        return DurableUsage(
            is_reachable=not bucket.is_away,
            requests=dict(bucket.requests),
            seconds=dict(bucket.seconds),
            damaged=self._damages,
            cache_bytes=cache.size if cache else 0,
            cache_hits=cache.hits if cache else 0,
            cache_misses=cache.misses if cache else 0,
        )

    def _write(self, layer: Layer, key: bytes) -> int:
        data, path = encode(layer), _path(key)
        stamp = self._bucket.write(path, data)
        if stamp is None and self._fetch(key) is None:
            is_kept = self._bucket.copy(path, f"quarantine/{key.hex()}-{time.time_ns()}")  # else it is gone by now
            stamp = self._bucket.write(path, data, overwrite=True)
            if is_kept:
                log.warning("%s is replaced by the layer that it should have been; it is in quarantine/", path)
        if stamp is not None:
            self._sound[path] = stamp.bare
        self._damaged.pop(path, None)
        if self._cache:
            self._cache.write(key, data)
        return len(data)

    def _fetch(self, key: bytes) -> Layer | None:
        """Returns a layer from the bucket, verified, or None; keeps it in the cache.

        Its memory is that of the layer, into which it is received: no more of it is there at any time than a chunk.
        """
        path, content, end = _path(key), None, 0
        try:
            for chunk, whole in self._bucket.chunks(path, _CHUNK):
                if content is None:  # what is no layer is not fetched, whatever its size
                    header = read_header(io.BytesIO(memoryview(chunk)[:_CHUNK]), whole.size)
                    content = header.memory()
                begin, end = end, end + len(chunk)
                content[begin:end] = np.frombuffer(chunk, np.uint8)
            layer = None if content is None else header.layer(content, key)
        except DAMAGE as error:
            self._report(path, whole.e_tag, f"is not that layer, and not served until it is put again: {error}")
            layer = None
        if layer is None or content is None:
            self._forget(key)
            return None
        self._sound[path] = whole.e_tag
        self._damaged.pop(path, None)
        if self._cache:
            self._cache.write(key, content.data)
        with self._lock:
            self._set_size(key, len(content))
        return layer

    def _read_head(self, key: bytes) -> LayerHead | None:
        found = self._bucket.beginning(_path(key), _HEAD)
        try:
            return read_header(io.BytesIO(found[0]), found[1]).head if found else None
        except DAMAGE:
            return None

    def _report(self, path: str, e_tag: str, what: str) -> None:
        """Counts and logs an object that is not what it should be, once."""
        if self._damaged.get(path) != e_tag:
            self._damages += 1
            self._damaged[path] = e_tag
            log.error("%s %s", path, what)

    # Names

    def is_fresh(self, name: str, *, latest: bool) -> bool:
        """Returns whether a name was read just now, or is known and the bucket is away; the `latest` never is."""
        seen = None if latest else self._seen.get(_name_path(name))
        if seen is None or self._bucket.reachability.is_away:
            return seen is not None
        return not seen.is_removed and time.monotonic() - seen.at < self._age_s

    def read_name(self, name: str, known: NameVersions | None) -> NameVersions | None:
        path, began = _name_path(name), time.monotonic()
        seen = self._seen.get(path)
        try:
            found = self._bucket.read(path, seen.stamp if seen else None)
        except NotModifiedError:
            assert seen is not None  # noqa: S101
            self._seen[path] = seen._replace(at=began)
            return known
        if found is None:
            self._seen.pop(path, None)
            return None
        _, versions = self._parsed(path, found)
        # What makes no sense is replaced by who puts the name.
        self._seen[path] = _Seen(name, found.stamp, began, versions is None)
        return versions

    def write_name(self, name: str, versions: NameVersions | None) -> bool:
        path, began = _name_path(name), time.monotonic()
        seen = self._seen.get(path)
        stamp = self._bucket.swap(path, name_file.encode(name, versions), seen.stamp if seen else None)
        if stamp is None:
            return False
        self._seen[path] = _Seen(name, stamp, began, versions is None)
        return True

    def names(self) -> Iterator[tuple[str, NameVersions]]:
        began = self._listed = time.monotonic()
        for path, stamp, name, versions in self._read_all([each.path for each in self._bucket.list("names")]):
            self._seen[path] = _Seen(name, stamp, began, versions is None)
            if versions is not None:
                yield name, versions

    def moved_names(self, *, latest: bool) -> list[str]:
        began = time.monotonic()
        if not latest and (self._bucket.reachability.is_away or began - self._listed < self._age_s):
            return []
        moved, strangers, unseen = [], [], dict(self._seen)
        try:
            objects = self._bucket.list("names")
        except UnavailableError:
            if latest:
                raise
            return []
        for each in objects:
            seen = unseen.pop(each.path, None)
            if seen is None:
                if self._damaged.get(each.path) != each.e_tag:
                    strangers.append(each.path)
            elif seen.stamp.bare != each.e_tag:
                moved.append(seen.name)
        moved += [name for _, _, name, _ in self._read_all(strangers)]  # and is read once more, under its lock
        self._listed = began
        return moved + [seen.name for seen in unseen.values()]

    def _read_all(self, paths: Sequence[str]) -> Iterator[tuple[str, Stamp, str, NameVersions | None]]:
        """Yields the path, stamp, name and versions of those objects that are of a name."""
        with ThreadPoolExecutor(_READERS) as pool:
            for path, found in zip(paths, pool.map(self._bucket.read, paths), strict=True):
                name, versions = self._parsed(path, found) if found else ("", None)
                if found and name:
                    yield path, found.stamp, name, versions

    def _parsed(self, path: str, found: Content) -> tuple[str, NameVersions | None]:
        """Returns what a name's object says; an empty name if it makes no sense, None for one that was removed."""
        try:
            if len(found.content) > name_file.MAX_BYTES:
                raise ValueError("it is too large for a name")
            return name_file.decode(found.content, path.removeprefix("names/"))
        except DAMAGE as error:
            self._report(path, found.stamp.bare, f"is no name, and leads nowhere until its name is put again: {error}")
            return "", None


def _path(key: bytes) -> str:
    return f"layers/{key.hex()}.safetensors"


def _name_path(name: str) -> str:
    return f"names/{name_file.path_of(name)}"
