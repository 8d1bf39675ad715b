"""Files that are written: whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE, S_IRWXU, S_ISREG
from typing import BinaryIO

from convserve.errors import InvalidRequestError, short_repr


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file to be written, which takes its place, and that of one that is there, if the block succeeds.

    Where `path` is a link, that is the place that it leads to; permissions, group and extended attributes stay. What is
    no regular file, such as a pipe, is written to as it is, and so is a file of another user or with several names,
    which a new one would lose, or in a folder that takes no others. A file that only then turns out not to be
    replaceable, as where its group cannot be given to another, gets the bytes at the end.
    """
    target = Path(os.path.realpath(path))
    before = None
    with suppress(FileNotFoundError):
        before = os.stat(path)
    if before is not None and not _may_replace(target, before):
        with open(path, "wb") as file:
            yield file
        return
    partial = target.with_name(f".{os.urandom(6).hex()}.partial")
    try:
        with partial.open("xb") as file:
            if before is not None:
                partial.chmod(S_IMODE(before.st_mode) & S_IRWXU)  # its group may be one that must not read it
            yield file
        try:
            if before is not None:
                _make_alike(partial, target, before)
            partial.replace(target)
        except OSError:  # of a mount, or of another's folder where each removes only his own
            if before is None:
                raise
            shutil.copyfile(partial, target)
    finally:
        with suppress(OSError):  # it was moved, or what failed before is what is raised
            partial.unlink()


def _may_replace(target: Path, before: os.stat_result) -> bool:
    is_own = not hasattr(os, "geteuid") or before.st_uid == os.geteuid()
    is_plain = S_ISREG(before.st_mode) and before.st_nlink == 1
    return is_own and is_plain and all(os.access(each, os.W_OK) for each in (target, target.parent))


def _make_alike(partial: Path, target: Path, before: os.stat_result) -> None:
    """Gives a new file the group, the extended attributes (ACLs are some) and the permissions of another."""
    if partial.stat().st_gid != before.st_gid:
        os.chown(partial, -1, before.st_gid)
    for name, value in _attributes(target).items() - _attributes(partial).items():
        os.setxattr(partial, name, value)
    partial.chmod(S_IMODE(before.st_mode))


def _attributes(file: Path) -> dict[str, bytes]:
    with suppress(AttributeError, OSError):  # a platform or a file system that has none
        return {name: os.getxattr(file, name) for name in os.listxattr(file)}
    return {}


def check_destination(path: str | Path, suffixes: Sequence[str], field: str) -> None:
    """Raises InvalidRequestError if a file that is to be written has another suffix, or cannot be where it is to be."""
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        expected = f"a file name that ends in {' or '.join(suffixes)}"
    elif file.is_dir() or not file.parent.is_dir():
        expected = "a file in a folder that exists"
    elif not any(os.access(each, os.W_OK) for each in (file, file.parent)):
        expected = "a file that can be written"
    else:
        return
    raise InvalidRequestError.for_field(field, expected, short_repr(str(path)))


def unwritable(field: str, path: str | Path, error: OSError) -> InvalidRequestError:
    """Returns the error that says why a file could not be written."""
    received = f"{short_repr(str(path))}: {error.strerror or error}"
    return InvalidRequestError.for_field(field, "a file that can be written", received)
