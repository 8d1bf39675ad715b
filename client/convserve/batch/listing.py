"""What is in folders: inputs, what is left out, and folders that cannot be read."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from convserve.batch.journal import has_journal
from convserve.files.inputs import INPUT_SUFFIXES

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
"""A folder with one of these files is a Zarr array or group, of version 3 or 2."""


def is_zarr(folder: str) -> bool:
    """Whether a folder is an array or a group of Zarr."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ZARR_METADATA)


class Listing:
    """What a folder or a pattern means, by paths.

    Attributes:
        found: Inputs: files whose names say that they can be read, and Zarr's folders.
        left_out: What is none, each with its kind: its suffix, or in words.
        unread: Folders that cannot be read, each with the reason.
    """

    def __init__(self, output: str) -> None:
        """Takes the real path of the output folder, of which nothing is an input."""
        self._output = output
        self._entered: set[str] = set()
        self.found: set[str] = set()
        self.left_out: dict[str, str] = {}
        self.unread: dict[str, str] = {}

    def add_folder(self, folder: str) -> None:
        """Adds what is in a folder and below."""
        for _, entries in self._folders(folder):
            for entry in entries:
                if entry.name.startswith("."):
                    self.left_out[entry.path] = "hidden"
                else:
                    self._add(entry)

    def add_pattern(self, folder: str, parts: Sequence[str]) -> None:
        """Adds what a pattern fits, given as its parts: the names below a folder. `**` enters no links to folders."""
        part, others = parts[0], parts[1:]
        if part == "**":
            for within, _ in self._folders(folder):
                self.add_pattern(within, others or ["*"])
            return
        fits = re.compile(fnmatch.translate(part)).match
        for entry in self._entries(folder):
            if not fits(entry.name) or (entry.name.startswith(".") and not part.startswith(".")):
                continue
            if not others:
                self._add(entry)
            elif _is_folder(entry) and not self.is_output(entry.path):
                self.add_pattern(entry.path, others)

    def add(self, other: Listing) -> None:
        """Adds what another one lists."""
        self.found |= other.found
        self.unread |= other.unread
        self._entered |= other._entered
        self.left_out |= other.left_out

    def left_out_by_kind(self) -> dict[str, list[str]]:
        """Returns what is left out, sorted, by kind, the most frequent first; what was found in another way is not."""
        kinds: defaultdict[str, list[str]] = defaultdict(list)
        for path in sorted(self.left_out.keys() - self.found - self._entered):
            kinds[self.left_out[path]].append(path)
        return dict(sorted(kinds.items(), key=lambda kind: -len(kind[1])))

    def _add(self, entry: os.DirEntry[str]) -> None:
        path = entry.path
        if _is_folder(entry):
            if is_zarr(path):
                self.found.add(path)
            elif not self.is_output(path):
                self.left_out[path] = "links to folders" if entry.is_symlink() else "folders"
        elif path.lower().endswith(INPUT_SUFFIXES):
            self.found.add(path)
        else:
            self.left_out[path] = os.path.splitext(path)[1].lower() or "without suffix"

    def _folders(self, top: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """Yields a folder and those below it, with what is in each, but for hidden ones, links, Zarr's and outputs.

        No links are entered, so that there is an end where one leads back. Outputs of other runs are left out.
        """
        waiting = [] if self.is_output(top) else [top]
        while waiting:
            folder = waiting.pop()
            self._entered.add(folder)
            entries = self._entries(folder)
            yield folder, entries
            for entry in entries:
                is_own = _is_folder(entry) and not entry.is_symlink() and not entry.name.startswith(".")
                if not is_own or is_zarr(entry.path) or self.is_output(entry.path):
                    continue
                if has_journal(entry.path):
                    self.left_out[entry.path] = "outputs of batch"
                else:
                    waiting.append(entry.path)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError as error:
            self.unread[folder] = error.strerror or str(error)
            return []

    def is_output(self, folder: str) -> bool:
        """Whether a folder is the output folder, or in it."""
        return f"{os.path.realpath(folder)}{os.sep}".startswith(f"{self._output}{os.sep}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as of a link to itself
        return False
