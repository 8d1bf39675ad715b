"""What reading a stranger's file needs: bounds, one kind of error for all that is wrong, and processes of its own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

from convserve.errors import InvalidRequestError, short_repr
from convserve.files.reading import reason_of

_ALWAYS_BYTES = 64 * 2**20
_MAX_EXPANSION = 16


class Budget:
    """How many bytes a file may still unpack to: all that is read out of it is counted here.

    Files of weights hardly compress, so a genuine one stays far below the bound, and a bomb (a compressed member, a
    data set larger than what is stored of it, one tensor under many names) is refused before memory is taken for it.
    """

    def __init__(self, file: Path) -> None:
        self._stored, self._spent = file.stat().st_size, 0

    def add(self, file: Path) -> None:
        """Counts another file, to which the first leads, as part of it."""
        self._stored += file.stat().st_size

    def spend(self, amount: int, what: str) -> None:
        """Counts bytes that are about to be read; raises InvalidRequestError if they are more than are left."""
        most = _ALWAYS_BYTES + _MAX_EXPANSION * self._stored
        if self._spent + amount > most:
            why = f"{_ALWAYS_BYTES} and {_MAX_EXPANSION} times the {self._stored} of the file"
            expected = f"a file that unpacks to at most {most} bytes ({why})"
            raise refusal(expected, f"{what} of {amount} bytes after {self._spent} others")
        self._spent += amount


def refusal(expected: str, received: str) -> InvalidRequestError:
    """Returns the error for a file that is not what it should be."""
    return InvalidRequestError.for_field("file", expected, received)


def check_file(file: Path) -> None:
    """Raises InvalidRequestError unless this is a regular file: from a device one could read forever."""
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise refusal("a file that can be read", f"{short_repr(str(file))}: {reason}") from error
    if not regular:
        raise refusal("a file", f"{short_repr(str(file))}, which is none")


def read_member(archive: zipfile.ZipFile, name: str, budget: Budget) -> bytes:
    """Returns a member's bytes, whose checksum was right; raises KeyError if there is no such member."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        received = f"{short_repr(name)} with compression {info.compress_type}"
        raise refusal("an archive that is stored or deflated", received)
    budget.spend(info.file_size, f"the member {short_repr(name)}")
    with archive.open(info) as opened:
        # With a size, zipfile unpacks no more than that; without one it would unpack all there is before it cuts it off
        # at the size that was declared. More than declared shows as a wrong checksum.
        return opened.read(info.file_size + 1)


def reason_in(file: Path, error: Exception) -> str:
    """Returns why a reader failed at a file, and that it is a pickle if it is one."""
    hint = ". It is a pickle, which would run code: none was run" if _is_pickle(file) else ""
    return f"{reason_of(error)}{hint}"


def _is_pickle(file: Path) -> bool:
    """Whether a file begins as pickles of protocol 2 and later do."""
    try:
        with file.open("rb") as opened:
            return opened.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def start_program(program: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a program of ours as a process of its own, with pipes to its input and from its output.

    It finds the packages that this process finds, and none in a folder that happens to be the working one. Raises
    InvalidRequestError where there is no Python to start.
    """
    return subprocess.Popen(  # noqa: S603 (a program of ours, without a shell)
        [_python(), "-P", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))},
    )


def _python() -> str:
    """Returns the Python to start; `sys.executable` is another program where that embeds Python, as uWSGI does."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = Path(sys.exec_prefix, "python.exe") if os.name == "nt" else Path(sys.exec_prefix, "bin", version)
    for path in (Path(sys.executable or ""), beside, beside.with_name("python3")):
        if path.name.lower().startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return str(path)
    received = f"sys.executable={sys.executable!r}, and none at {beside}: import from the command line instead"
    raise refusal("a Python to read the file in a process of its own", received)
