"""A single layer in a file, with its configuration: safetensors, or a `.npz` archive.

A folder has layers under their names: a safetensors file for each, a folder for each "/" in a name.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

from convserve.errors import InvalidRequestError, short_repr
from convserve.files import safetensors
from convserve.files.arrays import CONFIGURATION, storable
from convserve.files.reading import open_file
from convserve.files.writing import unwritable, whole_file
from convserve.layers import messages
from convserve.layers.conv2d import Conv2D
from convserve.layers.layer import Layer
from convserve.v1 import conv2d_pb2

LAYER_SUFFIXES = (".safetensors", ".npz")
"""How the names of the files that `save_layer` writes end."""

_SUFFIX = ".safetensors"
_LEFT_BEHIND = f"%*.partial{_SUFFIX}"  # by version 0.2, where it was killed while it wrote a file
_ODD = ("", ".")  # parts of a name, as in "a//b", that no file can have; "%" stands before them, which no name has
_FORMAT = {"format": CONFIGURATION}  # by which such a safetensors file is known


def save_layer(path: str | Path, layer: Layer, field: str = "output") -> None:
    """Writes a layer with its weights, whole or not at all, as `convserve.importing.read` reads it.

    A `.npz` file has the configuration as a text, `CONFIGURATION`, and bfloat16 as float32 without loss.
    InvalidRequestError is raised for the field if the name ends otherwise, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in LAYER_SUFFIXES:
        expected = f"a file name that ends in {' or '.join(LAYER_SUFFIXES)}"
        raise InvalidRequestError.for_field(field, expected, short_repr(str(path)))
    try:
        with whole_file(path) as file:
            if suffix == _SUFFIX:
                safetensors.write(file, layer.arrays, metadata_of(layer.config))
            else:
                named: dict[str, Any] = {name: storable(array) for name, array in layer.arrays.items()}
                named[CONFIGURATION] = metadata_of(layer.config)["conv2d"]
                np.savez(file, **named)
    except OSError as error:
        raise unwritable(field, path, error) from error


def metadata_of(config: Conv2D) -> dict[str, str]:
    """Returns the metadata of a safetensors file with a layer's weights; a server's durable store adds to them."""
    return _FORMAT | {"conv2d": json_format.MessageToJson(messages.to_message(config), indent=None)}


def holds_a_layer(file: str | Path) -> bool:
    """Returns whether a file is one that `save_layer` wrote, as its name ends; true too for one that cannot be read."""
    try:
        if str(file).lower().endswith(_SUFFIX):
            return configuration_in(safetensors.SafetensorsFile(Path(file)).metadata) is not None
        with open_file(file) as opened, zipfile.ZipFile(opened) as archive:
            return f"{CONFIGURATION}.npy" in archive.namelist()
    except (ValueError, OSError, zipfile.BadZipFile):
        return True  # reading it says what is wrong


def configuration_of(text: str) -> Conv2D:
    """Returns the configuration in the text that a `.npz` file has; raises ValueError for a wrong one."""
    try:
        return messages.from_message(json_format.Parse(text, conv2d_pb2.Conv2D()))
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


def configuration_in(metadata: dict[str, str]) -> Conv2D | None:
    """Returns the configuration in a safetensors file's metadata, or None; raises ValueError for a wrong one."""
    return configuration_of(metadata.get("conv2d", "")) if _FORMAT.items() <= metadata.items() else None


def file_for(folder: Path, name: str) -> Path:
    """Returns the file that a layer of this name has in a folder."""
    *parts, last = ("%" + part if part in _ODD else part for part in name.split("/"))
    return folder.joinpath(*parts, last + _SUFFIX)


def layer_files(folder: Path) -> dict[str, Path]:
    """Returns the files of layers in a folder, and in those within it, by the names of the layers, sorted."""
    named = {}
    for path in folder.rglob(f"*{_SUFFIX}"):
        if path.is_file() and not path.match(_LEFT_BEHIND):
            *parts, last = path.relative_to(folder).parts
            named["/".join(part.removeprefix("%") for part in (*parts, last.removesuffix(_SUFFIX)))] = path
    return dict(sorted(named.items()))


def save_named(folder: Path, name: str, layer: Layer) -> Path:
    """Writes a layer's file, in folders that are made if need be; returns it. Raises what `save_layer` does."""
    file = file_for(folder, name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("output", file, error) from error
    save_layer(file, layer)
    return file
