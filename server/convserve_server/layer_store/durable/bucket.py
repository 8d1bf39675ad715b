"""A bucket of an object store, by obstore: objects that are read, created, and moved on if nobody else did before."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError
from obstore.store import from_url

from convserve_server.layer_store.durable.reachability import NotModifiedError, Reachability, text_of

_FORMAT = "convserve.json"
_FORMAT_CONTENT = b'{"format": 1}\n'
_NEVER = '"00000000000000000000000000000000"'
# A name takes milliseconds. A call whose name is asked for when the bucket falls silent waits so long, once.
_SMALL: dict[str, Any] = {"connect_timeout": "1s", "timeout": "2s"}
# A layer may take minutes, as long as something arrives.
_LARGE: dict[str, Any] = {"connect_timeout": "2s", "read_timeout": "15s", "timeout": "30m"}
# Nothing arrives while a large layer is sent, or copied there.
_SLOW: dict[str, Any] = _LARGE | {"read_timeout": "10m"}
_SLOW_BYTES = 2**24
_MAX_SMALL = 2**20
_SCHEMES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}


class Stamp(NamedTuple):
    """What an object's content is known by: it has another one after each change."""

    e_tag: str | None
    version: str | None  # of those stores that number them

    @classmethod
    def of(cls, meta: Any) -> Stamp:
        """Returns that of an object's description, or of what a put answers."""
        return cls(meta["e_tag"], meta["version"])

    @property
    def bare(self) -> str:
        """The ETag as listings have it, some of which leave out its quotes."""
        return _bare(self.e_tag)


class Listed(NamedTuple):
    """An object as listings have it."""

    path: str
    size: int
    e_tag: str  # without its quotes
    modified: datetime


class Content(NamedTuple):
    """A small object."""

    content: bytes
    stamp: Stamp


class UnusableBucketError(OSError):
    """A bucket that a server cannot begin with; the text says what to do."""


class Bucket:
    """Objects by their paths under a prefix. Its methods may be called from any thread.

    All raise UnavailableError if the bucket does not answer, or refuses, which `reachability` knows.
    """

    def __init__(self, small: Any, large: Any, slow: Any, shown: str) -> None:
        """Takes obstore's stores for small objects, large ones and slow writes, and how the bucket is called."""
        self._small, self._large, self._slow, self._shown = small, large, slow, shown
        self.reachability = Reachability(shown, self._probe)

    @classmethod
    def at(cls, url: str) -> Bucket:
        """Returns the bucket at s3://BUCKET/PREFIX, gs:// or az://, with the credentials of the environment.

        Raises UnusableBucketError for a cloud's settings that are wrong.
        """
        prefix = _SCHEMES[url.partition(":")[0]]
        # obstore reads it itself only where it is given no other options.
        http = {"allow_http": os.environ.get(f"{prefix}_ALLOW_HTTP", "").lower() in ("1", "true", "yes")}
        retry: Any = {
            "max_retries": 2,
            "retry_timeout": timedelta(seconds=1),
            "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2},
        }
        try:
            small, large, slow = (
                from_url(url.rstrip("/"), client_options=cast(Any, options | http), retry_config=retry)
                for options in (_SMALL, _LARGE, _SLOW)
            )
        except Exception as error:
            raise _unusable(f"{url} to be opened", error) from None
        return cls(small, large, slow, url)

    def begin(self) -> None:
        """Tries everything that a server needs of it: that it is there, and that it holds to conditions.

        Raises UnusableBucketError.
        """
        try:
            with suppress(AlreadyExistsError):
                obstore.put(self._small, _FORMAT, _FORMAT_CONTENT, mode="create")
            self._probe()
            content = bytes(obstore.get(self._small, _FORMAT).bytes())
        except Exception as error:
            raise _unusable(f"{self._shown} to be read and written", error) from None
        if content != _FORMAT_CONTENT:
            text = f"Expected {_FORMAT} in {self._shown} to be of this version. Received another: choose another prefix"
            raise UnusableBucketError(f"{text}, or the version of convserve that wrote it.")
        for mode in ("create", {"e_tag": _NEVER, "version": "1"}):
            try:
                obstore.put(self._small, _FORMAT, _FORMAT_CONTENT, mode=mode)  # type: ignore[arg-type]
            except (AlreadyExistsError, PreconditionError):
                continue
            except Exception as error:
                raise _unusable(f"{self._shown} to take conditional writes", error) from None
            text = f"Expected {self._shown} to refuse a write whose condition does not hold (If-Match, If-None-Match)"
            raise UnusableBucketError(f"{text}. It wrote: names would be lost there. Use another store.")

    def read(self, path: str, seen: Stamp | None = None) -> Content | None:
        """Returns a small object, or None if there is none. Raises NotModifiedError if it is the one that was seen."""
        options: Any = {"if_none_match": seen.e_tag} if seen and seen.e_tag else None
        with self.reachability.asking("get"), suppress(FileNotFoundError):
            try:
                found = obstore.get(self._small, path, options=options)
                is_small = found.meta["size"] <= _MAX_SMALL  # what is larger is no name, and not fetched
                return Content(bytes(found.bytes()) if is_small else b"", Stamp.of(found.meta))
            except obstore.exceptions.NotModifiedError:
                raise NotModifiedError from None
        if seen:
            self._check()
        return None

    def chunks(self, path: str, size: int) -> Iterator[tuple[bytes, Listed]]:
        """Yields a large object in pieces of at least so many bytes, each with what is known of the whole of it."""
        with self.reachability.asking("get"):
            try:
                found = obstore.get(self._large, path)
            except FileNotFoundError:
                found = None
            if found is not None:
                whole = _listed(found.meta)
                for chunk in found.stream(min_chunk_size=size):
                    yield chunk, whole
        if found is None:
            self._check()

    def beginning(self, path: str, size: int) -> tuple[bytes, int] | None:
        """Returns an object's first bytes and the size of all of it, or None."""
        with self.reachability.asking("get"), suppress(FileNotFoundError):
            try:
                found = obstore.get(self._small, path, options={"range": (0, size)})
            except GenericError as error:
                if not re.search("status code: 416|Wanted range", str(error)):
                    raise
                return b"", 0  # of an empty object nobody can have a range
            return bytes(found.bytes()), found.meta["size"]
        return None

    def find(self, path: str) -> Listed | None:
        """Returns what is known of an object, or None if there is none."""
        with self.reachability.asking("head"), suppress(FileNotFoundError):
            return _listed(obstore.head(self._small, path))
        return None

    def list(self, folder: str) -> list[Listed]:
        """Returns the objects in a folder and those below it."""
        with self.reachability.asking("list"):
            return [_listed(meta) for chunk in obstore.list(self._large, folder) for meta in chunk]

    def write(self, path: str, content: bytes, *, overwrite: bool = False) -> Stamp | None:
        """Writes a large object; returns None if there is one already, unless it may `overwrite` that."""
        store, mode = self._slow if len(content) > _SLOW_BYTES else self._large, "overwrite" if overwrite else "create"
        with self.reachability.asking("put"), suppress(AlreadyExistsError):
            return Stamp.of(obstore.put(store, path, content, mode=cast(Any, mode), use_multipart=False))
        return None

    def swap(self, path: str, content: bytes, seen: Stamp | None) -> Stamp | None:
        """Writes a small object if it is still the one that was seen, or still none; returns its stamp, else None.

        No two writes have the same content, so that one whose answer was lost is known again.
        """
        mode: Any = {name: value for name, value in seen._asdict().items() if value} if seen else "create"
        with self.reachability.asking("put"), suppress(AlreadyExistsError, PreconditionError):
            return Stamp.of(obstore.put(self._small, path, content, mode=mode))
        found = self.read(path)
        return found.stamp if found and found.content == content else None

    def copy(self, path: str, to: str) -> bool:
        """Copies an object within the bucket; returns False if there is none."""
        with self.reachability.asking("copy"), suppress(FileNotFoundError):
            obstore.copy(self._slow, path, to)
            return True
        return False

    def delete(self, path: str) -> None:
        """Deletes an object, if it is there."""
        with self.reachability.asking("delete"), suppress(FileNotFoundError):
            obstore.delete(self._small, path)

    def _check(self) -> None:
        """Raises UnavailableError if there is no bucket: then no object is there either, but nothing was deleted."""
        with self.reachability.asking("list"):
            self._probe()

    def _probe(self) -> None:
        next(iter(obstore.list(self._small, chunk_size=1)), None)


def _listed(meta: Any) -> Listed:
    return Listed(meta["path"], meta["size"], _bare(meta["e_tag"]), meta["last_modified"])


def _bare(e_tag: str | None) -> str:
    return (e_tag or "").strip('"')


def _unusable(expected: str, error: Exception) -> UnusableBucketError:
    """Returns an error that says what to do where a server cannot start."""
    text, advice = str(error), "Check that it can be reached from here, and the endpoint; then start again."
    if re.search(r"NoSuchBucket|ContainerNotFound|status code: 404", text) or isinstance(error, FileNotFoundError):
        advice = "Make the bucket, or check its name, the region and the endpoint."
    elif re.search(r"status code: 40[13]|[Cc]redential|token|Account must", text):
        what = "may list, read, write and delete there (docs/object-storage.md names the variables)"
        advice = f"Check that the environment has credentials which {what}."
    return UnusableBucketError(f"Expected {expected}. Received: {text_of(error)}. {advice}")
