"""Processes that tests start, and what Linux says of one: its memory, its threads, its maps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STARTED: list[subprocess.Popen[Any]] = []


@contextmanager
def ended_afterwards(command: Sequence[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts a process, with Popen's options; kills it and those that it started when the block ends."""
    process = subprocess.Popen(command, process_group=0, **options)
    try:
        yield process
    finally:
        _end(process)


def ended_with_the_test(command: Sequence[Any], **options: Any) -> subprocess.Popen[Any]:
    """Starts a process, with Popen's options, which is killed at the end of the test with those that it started."""
    process = subprocess.Popen(command, process_group=0, **options)
    _STARTED.append(process)
    return process


def end_those_of_the_test() -> None:
    """Kills what `ended_with_the_test` has started."""
    while _STARTED:
        _end(_STARTED.pop())


def _end(process: subprocess.Popen[Any]) -> None:
    with suppress(ProcessLookupError):  # all of the group have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was not written yet goes nowhere
                pipe.close()


def status(pid: int, name: str) -> int:
    """Returns a number of /proc/PID/status: bytes for VmRSS and VmHWM, or a count such as Threads."""
    found = re.search(rf"^{name}:\s+(\d+)( kB)?$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, name
    return int(found[1]) * (1024 if found[2] else 1)


def processor_s(pid: int) -> float:
    """Returns how many seconds of a processor a process has had, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak(pid: int) -> None:
    """Makes VmHWM start again from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def shared_maps(pid: int) -> set[str]:
    """Returns the inodes of those regions of convserve's shared memory that a process maps."""
    maps = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {fields[4] for fields in maps if fields[5:6] == ["/memfd:convserve"]}


def maps_of_memory(pid: int) -> int:
    """Returns how many pieces of memory a process maps that were made with memfd_create, by whomever."""
    return Path(f"/proc/{pid}/maps").read_text().count(" /memfd:")


def descriptors(pid: int) -> int:
    """Returns how many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def listening_ports(pid: int) -> set[int]:
    """Returns the TCP ports at which a process listens."""
    opened = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in opened:  # LISTEN
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
