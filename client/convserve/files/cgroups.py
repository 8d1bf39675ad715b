"""Where control groups say what a process may take of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def cgroup_files(controller: str, name: str, old_name: str) -> Iterator[Path]:
    """Yields the files that may have a limit: of this process' cgroup, as systemd makes them, and of all above it.

    A container sees its own cgroup as the topmost one. `old_name` is the file's in cgroups v1.
    """
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else []
    for line in lines:  # number:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, file = (_CGROUPS / controller, old_name) if controllers else (_CGROUPS, name)
        own = Path(path.lstrip("/"))
        yield from (top / cgroup / file for cgroup in (own, *own.parents))
