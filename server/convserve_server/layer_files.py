"""Layers in a folder: one safetensors file a layer, one small file a name, each written whole or not at all.

    FOLDER/layers/DIGEST.safetensors    weights; in the header's metadata the configuration, as the contract's JSON
    FOLDER/names/SHA256-OF-NAME.json    {"name": ..., "digest": ...}
    FOLDER/set-aside/                   what was torn, tampered with or not ours, kept for the operator to look at

A file is written under another name, synced, and renamed, so a crash leaves the old state or the new one. What is read
is believed only if its digest, computed anew, is the one in its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from convserve import Conv2D, ConvserveError, Layer, conv2d_message
from convserve.digest import digest
from convserve.tensor import Shape, numpy_dtype
from convserve.v1 import conv2d_pb2

log = logging.getLogger("convserve")

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # safetensors' names
_FORMAT = "convserve.v1.layer"
_LONGEST_HEAD = 2**20


class TornLayerError(Exception):
    """A file does not hold the layer that its name promises."""


class LayerFiles:
    """The durable half of a store. It keeps nothing in memory."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder where it is missing, and clears what an interrupted write left.

        Raises:
            OSError: If the folder cannot be made or written to.
        """
        self._layers, self._names = folder / "layers", folder / "names"
        self._set_aside = folder / "set-aside"
        for each in (self._layers, self._names, self._set_aside):
            each.mkdir(parents=True, exist_ok=True)
        for each in (*self._layers.glob("*.partial"), *self._names.glob("*.partial")):
            each.unlink()

    def write(self, layer: Layer, key: bytes) -> int:
        """Stores a layer, synced to the disk when this returns; returns the bytes it takes."""
        tensors = {"kernel": layer.kernel} | ({} if layer.bias is None else {"bias": layer.bias})
        config = json_format.MessageToJson(conv2d_message.to_message(layer.config), indent=None)
        data = save(tensors, metadata={"format": _FORMAT, "conv2d": config})  # type: ignore[arg-type]
        _write_whole(self._path(key), data)
        return len(data)

    def read(self, key: bytes) -> Layer | None:
        """Returns a stored layer, or None; what is not what it should be is set aside and reported, and is None too."""
        path = self._path(key)
        try:
            layer = _parsed(path.read_bytes())
            if layer.kernel is None or digest(layer.config, layer.kernel, layer.bias) != key:
                raise TornLayerError("its contents have another digest")
        except FileNotFoundError:
            return None
        except TornLayerError as error:
            self._put_aside(path, error)
            return None
        return layer

    def read_head(self, key: bytes) -> tuple[Conv2D, Shape] | None:
        """Returns a stored layer's configuration and its kernel's shape without reading the weights, or None.

        The weights are not checked by it; a head that cannot be read is set aside and reported.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _LONGEST_HEAD:
                    raise TornLayerError(f"its head says that it has {length} bytes")
                config, tensors = _parsed_head(file.read(length))
                return config, tuple(tensors["kernel"]["shape"])
        except FileNotFoundError:
            return None
        except TornLayerError as error:
            self._put_aside(path, error)
            return None

    def delete(self, key: bytes) -> None:
        """Removes a layer."""
        self._path(key).unlink(missing_ok=True)
        _sync_folder(self._layers)

    def sizes(self) -> dict[bytes, int]:
        """Returns the bytes of every stored layer by digest, oldest first. Contents are checked when they are read."""
        found = {}
        for path in sorted(self._layers.iterdir(), key=lambda each: each.stat().st_mtime_ns):
            try:
                key = bytes.fromhex(path.stem)
                if len(key) != 32 or path != self._path(key) or not path.is_file():
                    raise ValueError
            except ValueError:
                self._put_aside(path, TornLayerError("its name is not a digest"))
                continue
            found[key] = path.stat().st_size
        return found

    def write_name(self, name: str, key: bytes) -> None:
        """Lets a name lead to a layer, synced to the disk when this returns."""
        _write_whole(self._name_path(name), json.dumps({"name": name, "digest": key.hex()}).encode())

    def delete_name(self, name: str) -> None:
        """Removes a name."""
        self._name_path(name).unlink(missing_ok=True)
        _sync_folder(self._names)

    def names(self) -> Iterator[tuple[str, bytes]]:
        """Yields every name with its layer's digest."""
        for path in sorted(self._names.iterdir()):
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                name, key = found["name"], bytes.fromhex(found["digest"])
                if len(key) != 32 or path != self._name_path(name):
                    raise ValueError("its contents don't fit its name")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._put_aside(path, TornLayerError(str(error)))
                continue
            yield name, key

    def _path(self, key: bytes) -> Path:
        return self._layers / f"{key.hex()}.safetensors"

    def _name_path(self, name: str) -> Path:
        # Hashed, so that no name, whatever its characters, can lead out of the folder or be too long for it.
        return self._names / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _put_aside(self, path: Path, why: Exception) -> None:
        place = self._set_aside / f"{time.time_ns()}-{path.name}"
        log.error("%s is set aside as %s and not served: %s", path, place, why)
        path.rename(place)


def _parsed(data: bytes) -> Layer:
    config, _ = _parsed_head(data[8 : 8 + min(int.from_bytes(data[:8], "little"), _LONGEST_HEAD)])
    try:
        tensors = {
            name: np.frombuffer(each["data"], numpy_dtype(_DTYPES[each["dtype"]])).reshape(each["shape"])
            for name, each in deserialize(data)  # type: ignore[no-untyped-call]
        }
        return Layer(config, tensors["kernel"], tensors.get("bias"))
    except (SafetensorError, ConvserveError, ValueError, KeyError, TypeError) as error:
        raise TornLayerError(f"{type(error).__name__}: {error}") from error


def _parsed_head(head: bytes) -> tuple[Conv2D, dict[str, Any]]:
    """Returns the configuration and what safetensors says of each tensor."""
    try:
        tensors = json.loads(head)
        metadata = tensors.pop("__metadata__")
        if metadata["format"] != _FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}")
        message = json_format.Parse(metadata["conv2d"], conv2d_pb2.Conv2D())
        if not all(isinstance(each["shape"], list) for each in tensors.values()) or "kernel" not in tensors:
            raise ValueError("it has no kernel")
        return conv2d_message.from_message(message), tensors
    except (json_format.ParseError, ConvserveError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornLayerError(f"{type(error).__name__}: {error}") from error


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
