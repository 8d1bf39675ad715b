"""Layers in a folder: one safetensors file a layer, one small file a name, each written whole or not at all.

    FOLDER/layers/DIGEST.safetensors    weights; in the header's metadata the configuration, as the contract's JSON, and
                                        a checksum of it, for names and initializers are no part of the digest
    FOLDER/names/SHA256-OF-NAME.json    {"name": ..., "digest": ..., "before": [...], "first": ...}: where it leads, the
                                        digests where it led before, and the version's number of the first of them all
    FOLDER/set-aside/                   what was torn, tampered with or not ours, kept for the operator to look at
    FOLDER/lock                         locked by the one server that has the folder open, however that server ends

A file is written under another name, synced, and renamed, so a crash leaves the old state or the new one. What is read
is believed only if its digest, computed anew, is the one in its name, and its checksum is right.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf import json_format
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from convserve.errors import ConvserveError
from convserve.files.layers import FORMAT
from convserve.files.safetensors import DTYPES
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.layers.weight_shapes import check_weight_shapes
from convserve.tensors.codec import itemsize, numpy_dtype
from convserve.v1 import conv2d_pb2
from convserve_server.layer_store.names import MAX_VERSIONS, NameVersions

log = logging.getLogger("convserve")

_MAX_HEAD = 2**20
_MAX_NAME_FILE = 2**12 + 2**7 * MAX_VERSIONS
# What contents that nobody of ours wrote make a reader raise; deep nesting is a RecursionError.
_READING_ERRORS = (
    json_format.ParseError, SafetensorError, ConvserveError, ValueError, KeyError, TypeError, AttributeError,
    RecursionError,
)  # fmt: skip


class TornLayerError(Exception):
    """A file does not hold the layer that its name promises."""


class LayerFiles:
    """The durable half of a store. It keeps nothing in memory."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder where it is missing, and clears what an interrupted write left.

        Raises:
            OSError: If the folder cannot be made or written to; EBUSY if another process has it open.
        """
        self._layers, self._names = folder / "layers", folder / "names"
        self._set_aside = folder / "set-aside"
        for each in (self._layers, self._names, self._set_aside):
            each.mkdir(parents=True, exist_ok=True)
        _lock_out_other_processes(self, folder / "lock")
        for each in (self._layers, self._names, self._set_aside):
            tempfile.TemporaryFile(dir=each).close()
        for each in (*self._layers.glob("*.partial"), *self._names.glob("*.partial")):
            if each.is_file():
                each.unlink()

    def write(self, layer: Layer, key: bytes) -> int:
        """Stores a layer, synced to the disk when this returns; returns the bytes it takes."""
        assert layer.kernel is not None  # noqa: S101 (the store takes no layer without)
        tensors = {"kernel": layer.kernel} | ({} if layer.bias is None else {"bias": layer.bias})
        config = json_format.MessageToJson(messages.to_message(layer.config), indent=None)
        data = save(tensors, metadata=FORMAT | {"conv2d": config, "checksum": _checksum(config)})
        _write_whole(self._path(key), data)
        return len(data)

    def read(self, key: bytes) -> Layer | None:
        """Returns a stored layer, or None; what is not what it should be is set aside and reported, and is None too."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                return _layer(file, key)
        except FileNotFoundError:
            return None
        except (TornLayerError, PermissionError, IsADirectoryError) as error:
            self._put_aside(path, error)
            return None

    def delete(self, key: bytes) -> None:
        """Removes a layer."""
        self._path(key).unlink(missing_ok=True)
        _sync_folder(self._layers)

    def sizes(self) -> dict[bytes, int]:
        """Returns the bytes of every stored layer by digest. Contents are checked when they are read."""
        found = {}
        for path in sorted(self._layers.iterdir()):
            try:
                key = bytes.fromhex(path.stem)
                if len(key) != 32 or path != self._path(key) or not path.is_file():
                    raise ValueError
            except ValueError:
                self._put_aside(path, TornLayerError("its name is not a digest"))
                continue
            found[key] = path.stat().st_size
        return found

    def write_name(self, name: str, versions: NameVersions) -> None:
        """Lets a name lead to the last of its versions, synced to the disk when this returns."""
        *before, digest = (each.hex() for each in versions.digests)
        told = {"name": name, "digest": digest, "before": before, "first": versions.first}
        _write_whole(self._name_path(name), json.dumps(told).encode())

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
                found = json.loads(path.read_text(encoding="utf-8"))
                # What was written before names had versions has one.
                name, first = found["name"], found.get("first", 1)
                digests = tuple(bytes.fromhex(each) for each in (*found.get("before", ()), found["digest"]))
                if any(len(each) != 32 for each in digests) or path != self._name_path(name):
                    raise ValueError("its contents don't fit its name")
                if not isinstance(first, int) or isinstance(first, bool) or first < 1:
                    raise ValueError("its versions have no number")
            except (OSError, *_READING_ERRORS) as error:
                self._put_aside(path, TornLayerError(str(error)))
                continue
            yield name, NameVersions(digests, first)

    def _path(self, key: bytes) -> Path:
        return self._layers / f"{key.hex()}.safetensors"

    def _name_path(self, name: str) -> Path:
        # Hashed, so that no name, whatever its characters, can lead out of the folder or be too long for it.
        return self._names / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _put_aside(self, path: Path, why: Exception) -> None:
        # A name may already be as long as names of files can be.
        place = self._set_aside / f"{time.time_ns()}-{os.fsdecode(os.fsencode(path.name)[-200:])}"
        # As Python texts, because a name that is no UTF-8 could not be written to a log.
        log.error("%r is set aside as %r and not served: %s", str(path), str(place), why)
        path.rename(place)


def _layer(file: BinaryIO, key: bytes) -> Layer:
    """Returns the layer in a file whose name promises this digest."""
    config = _config(file)
    file.seek(0)
    try:
        tensors = {
            name: np.frombuffer(each["data"], numpy_dtype(DTYPES[each["dtype"]])).reshape(each["shape"])
            for name, each in deserialize(file.read())  # type: ignore[no-untyped-call]
        }
        layer = Layer(config, tensors["kernel"], tensors.get("bias"))
    except _READING_ERRORS as error:
        raise TornLayerError(f"{type(error).__name__}: {error}") from error
    if layer.digest != key:
        raise TornLayerError("its contents have another digest")
    return layer


def _config(file: BinaryIO) -> Conv2D:
    """Returns the configuration at the beginning of a file, whose size it checks before anybody reads all of it."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEAD:
        raise TornLayerError(f"its head says that it has {length} bytes")
    try:
        tensors = json.loads(file.read(length))
        metadata, shape = tensors["__metadata__"], tensors["kernel"]["shape"]
        if not FORMAT.items() <= metadata.items() or metadata["checksum"] != _checksum(metadata["conv2d"]):
            raise ValueError("its head has another format, or another checksum")
        config = messages.from_message(json_format.Parse(metadata["conv2d"], conv2d_pb2.Conv2D()))
        check_weight_shapes(config, tuple(shape), config.use_bias)
        elements = math.prod(shape) + (config.filters if config.use_bias else 0)
    except _READING_ERRORS as error:
        raise TornLayerError(f"{type(error).__name__}: {error}") from error
    expected = 8 + length + elements * itemsize(config.variable_dtype)
    found = os.fstat(file.fileno()).st_size
    if found != expected:
        raise TornLayerError(f"it has {found} bytes, and was written with {expected}")
    return config


def _checksum(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()


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
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once the folder that holds the name is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
