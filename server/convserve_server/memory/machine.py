"""How much memory this process may take: the machine's, or less under a limit of its container or its own."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def machine_memory_bytes() -> int:
    """Returns the bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _cgroup_files():
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            limits.append(int(file.read_text()))
    own = (resource.getrlimit(resource_type)[0] for resource_type in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min([*limits, *(limit for limit in own if limit != resource.RLIM_INFINITY)])


def _cgroup_files() -> Iterator[Path]:
    """Yields the files that may have a limit: of this process' cgroup, as systemd makes them, and of all above it.

    A container sees its own cgroup as the topmost one.
    """
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else []
    for line in lines:  # number:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        own = Path(path.lstrip("/"))
        yield from (top / cgroup / name for cgroup in (own, *own.parents))
