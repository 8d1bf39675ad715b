"""Files that are read: only regular ones are opened, and whatever a reader raises for one becomes one kind of error."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO, TypeVar, cast

from convserve.errors import ConvserveError, InvalidArgumentError, InvalidTensorError, short_repr
from convserve.files.cgroups import cgroup_files

T = TypeVar("T")

_PARSINGS = 10


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file to be read; OSError is raised for a pipe, which would be waited for, and for a device."""
    return cast(BinaryIO, open(path, "rb", opener=_open_regular))


def check_fits(nbytes: int, path: str | Path, field: str = "input") -> None:
    """Raises InvalidTensorError for what takes over a quarter of the memory when it is read: several are read at once.

    The system would end the process. A small file may hold much: an archive of zeros, one with holes.
    """
    most = memory_bytes() // 4
    if nbytes > most:
        expected = f"an input that takes at most {most} bytes, a quarter of the memory"
        raise unreadable(expected, path, f"{nbytes} bytes", field)


@cache
def memory_bytes() -> int:
    """Returns the bytes of memory of this machine, or those that its container, its service or `ulimit` leaves."""
    found = [sys.maxsize]
    with suppress(AttributeError, ValueError, OSError):  # Windows has no such names
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ImportError):  # likewise
        import resource

        limits = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        found += [limit for limit in limits if limit != resource.RLIM_INFINITY]
    for file in cgroup_files("memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(ValueError, OSError):  # there is no such file, or it says "max"
            found.append(int(file.read_text()))
    return min(found)


def reason_of(error: Exception) -> str:
    """Returns an error's text for people: a line of at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


def parsed(parse: Callable[[], T]) -> T:
    """Returns what `parse` does, which lets Python's parser make a tree, as `ast.literal_eval` and NumPy's headers do.

    Before 3.11.8 CPython counts how deep all threads' trees are together, and raises SystemError where the garbage
    collector lets them take turns (https://github.com/python/cpython/issues/106905): then it is called again.
    """
    for _ in range(_PARSINGS - 1):
        with suppress(SystemError):
            return parse()
    return parse()


@contextmanager
def wrap_read_errors(
    path: str | Path,
    field: str,
    expected: str,
    reason: Callable[[Exception], str] = reason_of,
    error_class: type[InvalidArgumentError] = InvalidTensorError,
) -> Iterator[None]:
    """Turns whatever the block raises into an error of the class that names the file, what was expected, and why.

    A library may raise anything for bytes that make no sense: Pillow struct.error, NumPy tokenize.TokenError.
    """
    try:
        yield
    except ConvserveError:
        raise
    except MemoryError as error:
        raise unreadable("a file that fits into memory", path, reason_of(error), field, error_class) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, and no library's
            raise unreadable("a file that can be read", path, reason_of(error), field, error_class) from error
        raise unreadable(expected, path, reason(error), field, error_class) from error


def unreadable(
    expected: str,
    path: str | Path,
    problem: object,
    field: str = "input",
    error_class: type[InvalidArgumentError] = InvalidTensorError,
) -> InvalidArgumentError:
    """Returns the error that says why a file is no input."""
    return error_class.for_field(field, expected, f"{short_repr(str(path))}: {problem}")


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not S_ISREG(mode) and not S_ISDIR(mode):  # for a folder `open` says what is wrong
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a pipe or a device")
    return descriptor
