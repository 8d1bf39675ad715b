"""Which inputs there are: files by folder, pattern or name, each with a name for its output."""

from __future__ import annotations

import glob
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from convserve.batch.listing import Listing, is_zarr
from convserve.errors import InvalidRequestError, short_repr
from convserve.files.arrays import split_member
from convserve.files.inputs import INPUT_SUFFIXES

_SUFFIXES = ", ".join(INPUT_SUFFIXES)
_MAX_KINDS = 20
_MAX_NAMES = 100


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run."""

    folder: Path  # that all of them share, to which names are relative
    names: list[str]  # sorted, with "/" between folders; `archive.npz:name` for one array of an archive
    unread: dict[str, str] = field(default_factory=dict)  # why folders, whose names end with "/", or words are unread
    left_out: dict[str, int] = field(default_factory=dict)  # how many files and folders, by kind
    left_out_names: dict[str, list[str]] = field(default_factory=dict)  # the first of each kind, sorted

    def path(self, name: str) -> Path:
        """Returns an input's file, or its folder if it is Zarr's."""
        return self.folder / split_member(name)[0]


def find_inputs(arguments: Sequence[str], output: Path, keep_suffix: bool = False) -> Inputs:
    """Returns the inputs that words of a command line mean; refuses two with one output, and words that all mean none.

    A folder means every file in it and below that can be read; a pattern with *, ? or ** the same among those that it
    fits; a file itself. Hidden files and links to folders are left out of folders, and so is what lies in the output
    folder, or in folders of outputs of other runs. A word that means none is unread where others mean some.
    """
    bases: set[str] = set()
    whole = Listing("")
    refused: dict[str, InvalidRequestError] = {}  # by path
    for argument in arguments:
        listing = Listing(os.path.realpath(output))
        try:
            bases.add(base := _list(argument, listing))
            if listing.is_output(base):
                listing.found.clear()
                received = f"{short_repr(str(output))}, which {short_repr(argument)} is or is in"
                raise InvalidRequestError.for_field("output", "another folder than that of the inputs", received)
            if not listing.found:
                received = f"{short_repr(argument)}, with {_none(listing)}"
                raise _refused(f"files that end in {_SUFFIXES}, or Zarr", received)
        except InvalidRequestError as error:
            path = os.path.abspath(argument)
            bases.add(os.path.dirname(path))
            refused[path] = error
        whole.add(listing)
    if not whole.found:
        raise next(iter(refused.values()))
    folder = os.path.commonpath(bases)

    def name_of(path: str) -> str:
        return os.path.relpath(path, folder).replace(os.sep, "/")

    names = sorted(map(name_of, whole.found))
    _check_outputs(names, keep_suffix)
    unread = {f"{name_of(path)}/": f"The folder cannot be read: {why}." for path, why in sorted(whole.unread.items())}
    unread |= {name_of(p): each.violations[0].description for p, each in refused.items() if p not in whole.unread}
    kinds = whole.left_out_by_kind()
    left_out_names = {kind: [*map(name_of, paths[:_MAX_NAMES])] for kind, paths in islice(kinds.items(), _MAX_KINDS)}
    return Inputs(Path(folder), names, unread, _counted(kinds), left_out_names)


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


def _list(argument: str, listing: Listing) -> str:
    """Lists the paths that a word means, absolute; returns the folder to which their names are relative."""
    path = os.path.abspath(argument)
    if os.path.isdir(path):
        if is_zarr(path):
            listing.found.add(path)
            return os.path.dirname(path)
        listing.add_folder(path)
        return path
    file, member = split_member(path)
    if os.path.isfile(file):
        if member is None and not file.lower().endswith(INPUT_SUFFIXES):
            raise _refused(f"a file that ends in {_SUFFIXES}", short_repr(argument))
        listing.found.add(path)
        return os.path.dirname(file)
    if glob.has_magic(argument):
        fixed = os.path.dirname(path)
        while glob.has_magic(fixed):
            fixed = os.path.dirname(fixed)
        listing.add_pattern(fixed, os.path.relpath(path, fixed).split(os.sep))
        return fixed
    try:
        os.stat(file)
        reason = "which is no file"
    except OSError as error:
        reason = f"which cannot be read: {error.strerror or error}"
    raise _refused("a file, a folder, or a pattern such as 'photos/**/*.jpg'", f"{short_repr(argument)}, {reason}")


def _none(listing: Listing) -> str:
    """Returns "none", and what there is instead."""
    kinds = [f"{count} {kind}" for kind, count in _counted(listing.left_out_by_kind()).items()]
    unread = [f"{short_repr(path)}: {reason}" for path, reason in list(listing.unread.items())[:_MAX_KINDS]]
    return "; ".join(filter(None, [", ".join(["none", *kinds]), *unread]))


def _counted(kinds: dict[str, list[str]]) -> dict[str, int]:
    """Returns how many files and folders of which kinds are left out, the most frequent first."""
    counts = [(kind, len(paths)) for kind, paths in kinds.items()]
    others = sum(count for _, count in counts[_MAX_KINDS:])
    return dict(counts[:_MAX_KINDS]) | ({"others": others} if others else {})


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
