"""Which inputs there are: files by folder, pattern or name, each with a name for its output."""

from __future__ import annotations

import glob
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from convserve.errors import InvalidRequestError, short_repr
from convserve.files.arrays import split_member
from convserve.files.inputs import INPUT_SUFFIXES

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
"""A folder with one of these files is a Zarr array or group, of version 3 or 2."""

_SUFFIXES = ", ".join(INPUT_SUFFIXES)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run."""

    folder: Path  # that all of them share, to which names are relative
    names: list[str]  # sorted, with "/" between folders; `archive.npz:name` for one array of an archive

    def path(self, name: str) -> Path:
        """Returns an input's file, or its folder if it is Zarr's."""
        return self.folder / split_member(name)[0]


def find_inputs(arguments: Sequence[str], output: Path, keep_suffix: bool = False) -> Inputs:
    """Returns the inputs that words of a command line mean; refuses words that mean none, and two with one output.

    A folder means every file in it and below that can be read; a pattern with *, ? or ** the same among those that it
    fits; a file itself. Hidden files are left out of folders, and so is what lies in the output folder.
    """
    bases: set[str] = set()
    all_paths: set[str] = set()
    for argument in arguments:
        base, paths = _meant(argument, os.path.realpath(output))
        meant = set(paths)
        all_paths |= meant
        bases.add(base)
        if not meant:
            raise _refused(f"files that end in {_SUFFIXES}, or Zarr", f"{short_repr(argument)}, with none")
    folder = os.path.commonpath(bases)
    names = sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in all_paths)
    _check_outputs(names, keep_suffix)
    return Inputs(Path(folder), names)


def output_stem(name: str, keep_suffix: bool) -> str:
    """Returns the name of an input's output, without suffix: "a/photo" for "a/photo.jpg"."""
    stem, member = split_member(name)
    if not keep_suffix and stem.lower().endswith((*INPUT_SUFFIXES, ".zarr")):
        stem = stem[: stem.rindex(".")]
    return stem if member is None else member_stem(stem, member)


def member_stem(stem: str, member: str) -> str:
    """Returns the output's name of one of several arrays; refuses a name that leads out of the folder."""
    if not all(part.strip(".") for part in member.split("/")) or "\\" in member or "\0" in member:
        raise _refused("an array whose name can be a file's", short_repr(member))
    return f"{stem}/{member}"


def _is_zarr(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ZARR_METADATA)


def _meant(argument: str, output: str) -> tuple[str, Iterator[str]]:
    """Returns the folder to which a word's names are relative, and the paths that it means, absolute."""
    path = os.path.abspath(argument)
    if os.path.isdir(path):
        return (os.path.dirname(path), iter([path])) if _is_zarr(path) else (path, _below(path, output))
    file, member = split_member(path)
    if os.path.isfile(file):
        if member is None and not file.lower().endswith(INPUT_SUFFIXES):
            raise _refused(f"a file that ends in {_SUFFIXES}", short_repr(argument))
        return os.path.dirname(file), iter([path])
    if glob.has_magic(argument):
        fixed = os.path.dirname(path)
        while glob.has_magic(fixed):
            fixed = os.path.dirname(fixed)
        return fixed, _fitting(path, output)
    expected = "a file, a folder, or a pattern such as 'photos/**/*.jpg'"
    raise _refused(expected, f"{short_repr(argument)}, which is not there")


def _below(folder: str, output: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        if any(name in files for name in ZARR_METADATA):
            folders.clear()
            yield parent
            continue
        seen = (name for name in folders if not name.startswith("."))
        folders[:] = (name for name in seen if os.path.realpath(os.path.join(parent, name)) != output)
        for file in files:
            if file.lower().endswith(INPUT_SUFFIXES) and not file.startswith("."):
                yield os.path.join(parent, file)


def _fitting(pattern: str, output: str) -> Iterator[str]:
    @cache
    def is_output(folder: str) -> bool:
        return f"{os.path.realpath(folder)}{os.sep}".startswith(f"{output}{os.sep}")

    for path in glob.iglob(pattern, recursive=True):
        if is_output(os.path.dirname(path)) or os.path.realpath(path) == output:
            continue
        if _is_zarr(path) if os.path.isdir(path) else path.lower().endswith(INPUT_SUFFIXES):
            yield path


def _check_outputs(names: list[str], keep_suffix: bool) -> None:
    """Checks that no two inputs have the same output."""
    taken: dict[str, str] = {}
    for name in names:
        stem = output_stem(name, keep_suffix)
        other = taken.setdefault(stem, name)
        if other is not name:
            advice = "give one of them" if keep_suffix else "give one of them, or --keep-suffix"
            received = f"{short_repr(other)} and {short_repr(name)}, both for {short_repr(stem)}: {advice}"
            raise _refused("inputs whose outputs have different names", received)
    stems = sorted(taken)
    for name in names:
        if not name.lower().endswith((".npz", ".zarr")):  # what may hold several arrays
            continue
        folder = output_stem(name, keep_suffix) + "/"  # where the arrays go if there are several
        following = bisect_left(stems, folder)
        if following < len(stems) and stems[following].startswith(folder):
            both = f"{short_repr(taken[stems[following]])} beside {short_repr(name)}"
            received = f"{both}, whose arrays go to {short_repr(folder)}: give them one by one"
            raise _refused("inputs whose outputs go to different places", received)


def _refused(expected: str, received: str) -> InvalidRequestError:
    return InvalidRequestError.for_field("input", expected, received)
