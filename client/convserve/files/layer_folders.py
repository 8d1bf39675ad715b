"""Layers in a folder under their names: a safetensors file for each, a folder for each "/" in a name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from convserve.files.arrays import unwritable
from convserve.files.layers import save_layer
from convserve.layers.layer import Layer

_SUFFIX = ".safetensors"
_PARTIAL = ".partial.safetensors"
_ODD = ("", ".")  # parts of a name, as in "a//b", that no file can have; "%" stands before them, which no name has


def file_for(folder: Path, name: str) -> Path:
    """Returns the file that a layer of this name has in a folder."""
    *parts, last = ("%" + part if part in _ODD else part for part in name.split("/"))
    return folder.joinpath(*parts, last + _SUFFIX)


def layer_files(folder: Path) -> dict[str, Path]:
    """Returns the files of layers in a folder, and in those within it, by the names of the layers, sorted."""
    named = {}
    for path in folder.rglob(f"*{_SUFFIX}"):
        if path.is_file() and not (path.name.startswith("%") and path.name.endswith(_PARTIAL)):
            *parts, last = path.relative_to(folder).parts
            named["/".join(part.removeprefix("%") for part in (*parts, last.removesuffix(_SUFFIX)))] = path
    return dict(sorted(named.items()))


def save_named(folder: Path, name: str, layer: Layer) -> Path:
    """Writes a layer's file, whole or not at all, in place of one that is there; returns it.

    Raises InvalidRequestError if it cannot be written.
    """
    file = file_for(folder, name)
    partial = file.with_name(f"%{os.urandom(6).hex()}{_PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_layer(partial, layer)
        partial.replace(file)
    except OSError as error:
        raise unwritable("output", file, error) from error
    finally:
        with suppress(OSError):  # it was moved, or what failed before is what is raised
            partial.unlink()
    return file
